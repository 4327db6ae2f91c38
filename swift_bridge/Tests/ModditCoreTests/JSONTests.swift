import Foundation
import Testing

@testable import ModditCore

struct JSONTests {
    private func parse(_ text: String) throws(ModditError) -> JSON {
        try JSON.parse(Data(text.utf8), place: "file", component: "test")
    }

    @Test func values() throws {
        #expect(
            try parse(" [1, -0, 1.0, 2e3, true, null] ")
                == .array([
                    .integer(1), .integer(0), .number(1), .number(2000), .bool(true), .null,
                ]))
        #expect(
            try parse(#"{"a": {"b": []}, "c": "\u00e9\ud83d\ude42\n\/"}"#)
                == .object([
                    "a": .object(["b": .array([])]), "c": .string("é🙂\n/"),
                ]))
        #expect(try parse("9223372036854775807") == .integer(.max))
        #expect(try parse("9223372036854775808") == .unsigned(9_223_372_036_854_775_808))
        #expect(try parse("18446744073709551615") == .unsigned(.max))
        #expect(try parse("18446744073709551616") == .number(18_446_744_073_709_551_616))
    }

    @Test(arguments: [
        "", " ", "{", "[1", "[1,]", "{\"a\"}", "{\"a\":1,}", "{a:1}", "01", "1.", ".5", "1e", "+1", "--1", "1e999",
        "nul", "truee", "[1] 2", "\"", "\"\\x\"", "\"\\u12\"", "\"\\u+123\"", "\"\\ud83d\"", "\"\\ude42\"",
        "\"\\ud83d\\u0041\"", "\"a\nb\"", "{\"a\":1,\"a\":2}", "NaN", "Infinity", "'a'", "\u{feff}1",
    ])
    func faults(text: String) {
        #expect(throws: ModditError.self) { try parse(text) }
    }

    @Test func deepNesting() throws {
        let deepest = Bounds.jsonDepth
        _ = try parse(String(repeating: "[", count: deepest) + String(repeating: "]", count: deepest))
        #expect(throws: ModditError.self) { try parse(String(repeating: "[", count: 1_000_000)) }
        #expect(throws: ModditError.self) { try parse(String(repeating: "{\"a\":", count: 1_000_000)) }
    }

    @Test func invalidBytes() {
        for bytes in [[0x22, 0xC3, 0x22], [0x22, 0xED, 0xA0, 0x80, 0x22], [0xFF]] as [[UInt8]] {
            #expect(throws: ModditError.self) { try JSON.parse(Data(bytes), place: "file", component: "test") }
        }
    }

    @Test func messageTellsThePlace() throws {
        let field = JSONField(try parse(#"{"a": [1, "x"]}"#), place: "file", component: "test")
        let wanted = "[test] file: a[1] is 'x', want an integer; convert the checkpoint again"
        #expect(throws: ModditError.format(wanted)) { try field["a"].array().map { try $0.integer() } }
    }
}

/// For tests that change a file: writing JSON, and replacing a value in it.
extension JSON {
    var encoded: String {
        switch self {
        case .null: "null"
        case .bool(let flag): "\(flag)"
        case .integer(let number): "\(number)"
        case .unsigned(let number): "\(number)"
        case .number(let number): "\(number)"
        case .string(let text): Self.quote(text)
        case .array(let items): "[" + items.map(\.encoded).joined(separator: ",") + "]"
        case .object(let fields):
            "{"
                + fields.sorted { $0.key < $1.key }.map { Self.quote($0.key.text) + ":" + $0.value.encoded }
                .joined(separator: ",") + "}"
        }
    }

    private static func quote(_ text: String) -> String {
        var quoted = "\""
        for scalar in text.unicodeScalars {
            switch scalar {
            case "\"", "\\": quoted += "\\\(scalar)"
            case _ where scalar.value < 0x20: quoted += "\\u" + String(0x10000 + scalar.value, radix: 16).dropFirst()
            default: quoted.unicodeScalars.append(scalar)
            }
        }
        return quoted + "\""
    }

    /// Paths to all values, by field names and indices.
    var places: [[String]] {
        switch self {
        case .array(let items):
            items.enumerated().flatMap { index, item in [["\(index)"]] + item.places.map { ["\(index)"] + $0 } }
        case .object(let fields):
            fields.sorted { $0.key < $1.key }.flatMap { name, item in
                [[name.text]] + item.places.map { [name.text] + $0 }
            }
        default: []
        }
    }

    func replacing(_ place: ArraySlice<String>, with other: JSON?) -> JSON {
        guard let first = place.first else { return other ?? self }
        let rest = place.dropFirst()
        switch self {
        case .array(var items):
            guard let index = Int(first) else { return self }
            if rest.isEmpty, other == nil {
                items.remove(at: index)
            } else {
                items[index] = items[index].replacing(rest, with: other)
            }
            return .array(items)
        case .object(var fields):
            let name = ExactText(first)
            fields[name] = rest.isEmpty ? other : fields[name]?.replacing(rest, with: other)
            return .object(fields)
        default: return self
        }
    }
}
