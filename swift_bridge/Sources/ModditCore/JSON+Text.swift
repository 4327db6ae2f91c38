extension JSON {
    /// The value as Python's `json.dumps(value, sort_keys=True)` writes it, character for character.
    ///
    /// Numbers have the fewest digits that read back the same; everything beyond ASCII is escaped.
    public var text: String {
        switch self {
        case .null: return "null"
        case .bool(let flag): return flag ? "true" : "false"
        case .integer(let number): return String(number)
        case .number(let number): return "\(number)"
        case .string(let text): return Self.quote(text)
        case .array(let items): return "[" + items.map(\.text).joined(separator: ", ") + "]"
        case .object(let fields):
            let names = fields.keys.sorted { $0.unicodeScalars.lexicographicallyPrecedes($1.unicodeScalars) }
            let parts = names.map { Self.quote($0) + ": " + (fields[$0] ?? .null).text }
            return "{" + parts.joined(separator: ", ") + "}"
        }
    }

    private static func quote(_ text: String) -> String {
        let short: [Unicode.Scalar: String] = [
            "\"": "\\\"", "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\u{8}": "\\b", "\u{C}": "\\f",
        ]
        var quoted = "\""
        for scalar in text.unicodeScalars {
            if let escape = short[scalar] {
                quoted += escape
            } else if (0x20...0x7E).contains(scalar.value) {
                quoted.unicodeScalars.append(scalar)
            } else {
                for unit in String(scalar).utf16 {
                    let digits = String(unit, radix: 16)
                    quoted += "\\u" + String(repeating: "0", count: 4 - digits.count) + digits
                }
            }
        }
        return quoted + "\""
    }
}
