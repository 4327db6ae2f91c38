/// A value of a JSON file.
///
/// Read by our own parser, so that a file means the same, and fails alike, on Linux and on Apple's systems: whole
/// numbers stay whole, truth values are not numbers, a repeated field and a deep nesting are errors.
public enum JSON: Sendable, Equatable {
    /// `null`
    case null
    /// `true` or `false`
    case bool(Bool)
    /// A number without fraction and exponent that fits 64 bits.
    case integer(Int)
    /// Any other number; finite.
    case number(Double)
    /// A text.
    case string(String)
    /// A list.
    case array([JSON])
    /// Fields by name.
    case object([String: JSON])

    /// What kind of value it is, for messages.
    public var kind: String {
        switch self {
        case .null: "null"
        case .bool: "true or false"
        case .integer: "an integer"
        case .number: "a number"
        case .string: "a text"
        case .array: "a list"
        case .object: "an object"
        }
    }
}

/// A value of a JSON file and where it is, for reading it strictly: every accessor throws a message with the place.
public struct JSONField: Sendable {
    /// The value.
    public let value: JSON
    /// File and path to the value.
    public let place: String
    /// Part of the program that reads it, for messages.
    public let component: String

    /// Points at a value.
    public init(_ value: JSON, place: String, component: String) {
        self.value = value
        self.place = place
        self.component = component
    }

    /// Whether the value is `null`.
    public var isNull: Bool { value == .null }

    /// Reads an object that has all the `required` fields, perhaps some `optional` ones, and no others.
    public func object(_ required: [String], optional: [String] = []) throws(ModditError) -> [String: JSONField] {
        let fields = try object()
        let unknown = Set(fields.keys).subtracting(required).subtracting(optional)
        guard unknown.isEmpty, required.allSatisfy({ fields[$0] != nil }) else {
            let also = optional.isEmpty ? "" : ", perhaps \(optional.sorted())"
            throw format("got fields \(fields.keys.sorted())", want: "exactly \(required.sorted())\(also)")
        }
        return fields
    }

    /// Reads an object with any fields.
    public func object() throws(ModditError) -> [String: JSONField] {
        guard case .object(let fields) = value else { throw wrongKind("an object") }
        var result: [String: JSONField] = [:]
        for (name, field) in fields {
            result[name] = JSONField(field, place: "\(place).\(name)", component: component)
        }
        return result
    }

    /// Reads a list.
    public func array() throws(ModditError) -> [JSONField] {
        guard case .array(let items) = value else { throw wrongKind("a list") }
        return items.enumerated().map { JSONField($1, place: "\(place)[\($0)]", component: component) }
    }

    /// Reads a text.
    public func string() throws(ModditError) -> String {
        guard case .string(let text) = value else { throw wrongKind("a text") }
        return text
    }

    /// Reads `true` or `false`.
    public func bool() throws(ModditError) -> Bool {
        guard case .bool(let flag) = value else { throw wrongKind("true or false") }
        return flag
    }

    /// Reads an integer in a range.
    public func integer(in range: ClosedRange<Int> = Int.min...Int.max) throws(ModditError) -> Int {
        guard case .integer(let number) = value else { throw wrongKind("an integer") }
        guard range.contains(number) else {
            throw .valueRange("[\(component)] \(place) is out of range, got \(number), want \(range)")
        }
        return number
    }

    /// Reads a number, whole or not.
    public func number() throws(ModditError) -> Double {
        switch value {
        case .integer(let number): return Double(number)
        case .number(let number): return number
        default: throw wrongKind("a number")
        }
    }

    /// Makes the error for a value that is not what it should be.
    public func format(_ found: String, want: String) -> ModditError {
        .format("[\(component)] \(place): \(found), want \(want); the file is damaged or not of this kind")
    }

    private func wrongKind(_ wanted: String) -> ModditError {
        format("got \(value.kind)", want: wanted)
    }
}
