extension String {
    /// The text with what a terminal would obey or not show written as in Python: control characters, line ends, marks
    /// of direction, spaces other than the usual one.
    package var printable: String {
        unicodeScalars.allSatisfy(\.isPrintable) ? self : unicodeScalars.map(\.printable).joined()
    }

    /// The text for a message: in quotes, escaped, and without its middle where it is long.
    var quoted: String {
        let half = 40
        let scalars = Array(unicodeScalars)
        guard scalars.count > 2 * half else { return "'\(Self.escape(scalars[...]))'" }
        return "'\(Self.escape(scalars.prefix(half)))...\(Self.escape(scalars.suffix(half)))'"
    }

    private static func escape(_ scalars: ArraySlice<Unicode.Scalar>) -> String {
        scalars.map { $0 == "'" || $0 == "\\" ? "\\\($0)" : $0.printable }.joined()
    }
}

extension Unicode.Scalar {
    /// As Python's `str.isprintable` has it.
    fileprivate var isPrintable: Bool {
        switch properties.generalCategory {
        case .control, .format, .surrogate, .privateUse, .unassigned, .lineSeparator, .paragraphSeparator: false
        case .spaceSeparator: self == " "
        default: true
        }
    }

    fileprivate var printable: String {
        if isPrintable { return String(self) }
        switch self {
        case "\n": return "\\n"
        case "\r": return "\\r"
        case "\t": return "\\t"
        default:
            let (letter, width) = value < 0x100 ? ("x", 2) : value < 0x10000 ? ("u", 4) : ("U", 8)
            let digits = String(value, radix: 16)
            return "\\" + letter + String(repeating: "0", count: width - digits.count) + digits
        }
    }
}
