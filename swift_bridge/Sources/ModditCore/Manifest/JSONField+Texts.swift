// The texts of a manifest that have a form, as moddit/bounds.py and moddit/manifest.py describe them. Digits and
// letters are those of ASCII, and characters are code points.

extension JSONField {
    /// Reads a name that a program of Core ML can have.
    func identifier() throws(ModditError) -> String {
        try text(1...Bounds.name, want: "a name of letters, digits and underscores that does not begin with a digit") {
            !isDigit($0[0]) && $0.allSatisfy { isDigit($0) || isLetter($0) || $0 == "_" }
        }
    }

    /// Reads a version, of one to three numbers.
    func version() throws(ModditError) -> String {
        try text(1...Bounds.name, want: "a version such as 18.0") { scalars in
            let parts = scalars.split(separator: ".", omittingEmptySubsequences: false)
            return (1...3).contains(parts.count)
                && parts.allSatisfy { (1...4).contains($0.count) && $0.allSatisfy(isDigit) }
        }
    }

    /// Reads a SHA-256.
    func sha256() throws(ModditError) -> String {
        try text(0...Bounds.name, want: "64 hexadecimal digits") {
            $0.count == 64 && $0.allSatisfy { isDigit($0) || ("a"..."f").contains($0) }
        }
    }

    /// Reads a time in UTC, ISO 8601.
    func time() throws(ModditError) -> String {
        try text(0...Bounds.name, want: "a time in UTC such as 2026-01-31T12:00:00Z") { scalars in
            ["0000-00-00T00:00:00Z", "0000-00-00T00:00:00+00:00"].contains { pattern in
                let form = Array(pattern.unicodeScalars)
                let zone = 19  // where the digits are fixed
                return form.count == scalars.count
                    && zip(form, scalars).enumerated().allSatisfy { index, pair in
                        pair.0 == "0" && index < zone ? isDigit(pair.1) : pair.0 == pair.1
                    }
            }
        }
    }

    /// Reads a path that stays inside the bundle, and is not the bundle itself.
    ///
    /// It is cut at every slash, also one that a combining character follows: a `Character` would hide that one.
    func relativePath() throws(ModditError) -> String {
        let want = "a path inside the bundle, relative, with forward slashes and without . and .."
        return try text(1...Bounds.path, want: want) { scalars in
            let parts = scalars.split(separator: "/", omittingEmptySubsequences: false)
            return !parts.contains { [[], ["."], [".", "."]].contains(Array($0)) }
                && !scalars.contains { $0 == "\\" || $0.properties.generalCategory == .control }
        }
    }

    private func text(
        _ range: ClosedRange<Int>, want: String, _ isRight: ([Unicode.Scalar]) -> Bool
    ) throws(ModditError) -> String {
        let text = try text(range)
        guard isRight(Array(text.unicodeScalars)) else { throw wrong(want: want) }
        return text
    }
}

private func isDigit(_ scalar: Unicode.Scalar) -> Bool {
    ("0"..."9").contains(scalar)
}

private func isLetter(_ scalar: Unicode.Scalar) -> Bool {
    ("a"..."z").contains(scalar) || ("A"..."Z").contains(scalar)
}

extension String {
    /// Whether a path is one of a folder's.
    func isPath(inside folder: String) -> Bool {
        utf8.starts(with: (folder + "/").utf8)
    }
}
