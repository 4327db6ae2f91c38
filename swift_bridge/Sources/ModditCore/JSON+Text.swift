extension JSON {
    /// The value as Python's `json.dumps(value, sort_keys=True)` writes it, character for character.
    ///
    /// Numbers have the fewest digits that read back the same; everything beyond ASCII is escaped.
    package var text: String {
        switch self {
        case .null: return "null"
        case .bool(let flag): return flag ? "true" : "false"
        case .integer(let number): return String(number)
        case .unsigned(let number): return String(number)
        case .number(let number): return "\(number)"
        case .string(let text): return Self.quote(text)
        case .array(let items): return "[" + items.map(\.text).joined(separator: ", ") + "]"
        case .object(let fields):
            let parts = fields.sorted { $0.key < $1.key }.map { Self.quote($0.key.text) + ": " + $0.value.text }
            return "{" + parts.joined(separator: ", ") + "}"
        }
    }

    /// The value as `json.dumps(value, sort_keys=True, indent=1)` writes it.
    package var indentedText: String { indented("\n") }

    private func indented(_ end: String) -> String {
        let inner = end + " "
        switch self {
        case .array(let items) where !items.isEmpty:
            return "[" + inner + items.map { $0.indented(inner) }.joined(separator: "," + inner) + end + "]"
        case .object(let fields) where !fields.isEmpty:
            let parts = fields.sorted { $0.key < $1.key }
                .map { Self.quote($0.key.text) + ": " + $0.value.indented(inner) }
            return "{" + inner + parts.joined(separator: "," + inner) + end + "}"
        default: return text
        }
    }

    /// The value for a message, escaped and shortened, about as Python writes it.
    var shown: String {
        let most = 4
        switch self {
        case .null, .bool, .integer, .unsigned, .number: return text
        case .string(let text): return text.quoted
        case .array(let items):
            let parts = items.prefix(most).map(\.outline) + (items.count > most ? ["..."] : [])
            return "[" + parts.joined(separator: ", ") + "]"
        case .object(let fields):
            let first = fields.sorted { $0.key < $1.key }.prefix(most)
            let parts = first.map { $0.key.text.quoted + ": " + $0.value.outline }
            return "{" + (parts + (fields.count > most ? ["..."] : [])).joined(separator: ", ") + "}"
        }
    }

    private var outline: String {
        switch self {
        case .array: "[...]"
        case .object: "{...}"
        default: shown
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
