/// A prompt as diffusers' PixArt pipelines give it to the tokenizer with `clean_caption=False`.
package enum Caption {
    /// Checks the length of a prompt, in code points.
    ///
    /// - Throws: `ModditError.valueRange` for one that is too long to encode.
    package static func check(_ prompt: String) throws(ModditError) {
        let count = prompt.unicodeScalars.count
        guard count <= Bounds.prompt else {
            throw .valueRange(
                "[tokenizer] the prompt has \(count) characters, want at most \(Bounds.prompt); shorten it")
        }
    }

    /// Turns a prompt to lower case and strips white space at both ends, as Python's `text.lower().strip()` does.
    package static func clean(_ text: String) -> String {
        let scalars = Array(text.unicodeScalars)
        var lower: [Unicode.Scalar] = []
        for (index, scalar) in scalars.enumerated() {
            if scalar == "Σ", isFinal(scalars, index) {
                lower.append("ς")
            } else {
                lower += scalar.properties.lowercaseMapping.unicodeScalars
            }
        }
        let start = lower.firstIndex { !isSpace($0) } ?? lower.endIndex
        let end = lower.lastIndex { !isSpace($0) }.map { $0 + 1 } ?? start
        return String(lower[start..<end])
    }

    /// Whether a capital sigma ends a word: a letter with case before it, none after it, signs without case skipped.
    private static func isFinal(_ text: [Unicode.Scalar], _ index: Int) -> Bool {
        let before = text[..<index].last { !$0.properties.isCaseIgnorable }
        let after = text[(index + 1)...].first { !$0.properties.isCaseIgnorable }
        return before?.properties.isCased == true && after?.properties.isCased != true
    }

    /// White space in Python's sense: Unicode's, and four control characters.
    private static func isSpace(_ scalar: Unicode.Scalar) -> Bool {
        scalar.properties.isWhitespace || (0x1C...0x1F).contains(scalar.value)
    }
}
