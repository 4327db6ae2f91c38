/// A value of a JSON file.
///
/// Read by our own parser, so that a file means the same, and fails alike, on Linux and on Apple's systems: whole
/// numbers stay whole, truth values are not numbers, a repeated field and a deep nesting are errors.
package enum JSON: Sendable, Equatable {
    /// `null`
    case null
    /// `true` or `false`
    case bool(Bool)
    /// A number without fraction and exponent that fits 64 bits with a sign.
    case integer(Int)
    /// A number without fraction and exponent that fits 64 bits without a sign only, such as a large seed.
    case unsigned(UInt64)
    /// Any other number; finite.
    case number(Double)
    /// A text.
    case string(String)
    /// A list.
    case array([JSON])
    /// Fields by name.
    case object([ExactText: JSON])

    /// Makes an object of fields by name.
    package static func dictionary(_ fields: [String: JSON]) -> JSON {
        .object(Dictionary(uniqueKeysWithValues: fields.map { (ExactText($0), $1) }))
    }
}

/// A value of a JSON file and where it is, for reading it strictly: every accessor throws a message with the place.
///
/// Messages read as in Python: `[component] FILE: path.of.field is VALUE, want ...; what to do`.
struct JSONField: Sendable {
    /// The value.
    let value: JSON
    /// Name of the file.
    let file: String
    /// Fields and indices that lead to the value; empty for the whole file.
    let path: String
    /// Part of the program that reads it, for messages.
    let component: String

    /// Points at the value of a whole file.
    init(_ value: JSON, place file: String, component: String) {
        self.init(value, file: file, path: "", component: component)
    }

    private init(_ value: JSON, file: String, path: String, component: String) {
        self.value = value
        self.file = file
        self.path = path
        self.component = component
    }

    /// Whether the value is `null`.
    var isNull: Bool { value == .null }

    /// Reads an object that has all the `required` fields, perhaps some `optional` ones, and no others.
    func object(_ required: [String], optional: [String] = []) throws(ModditError) -> [String: JSONField] {
        let fields = try object()
        let absent = Set(required.map { ExactText($0) }).subtracting(fields.keys)
        let more = Set(fields.keys).subtracting((required + optional).map { ExactText($0) })
        guard absent.isEmpty, more.isEmpty else {
            let parts = [("lacks", absent), ("has", more)].filter { !$1.isEmpty }
            let found = parts.map { "\($0) \(Self.list($1))" }.joined(separator: " and ")
            let also = optional.isEmpty ? "" : " and at most \(optional.sorted())"
            throw .format(message(found, want: "an object with exactly \(required.sorted())\(also)"))
        }
        return Dictionary(uniqueKeysWithValues: fields.map { ($0.text, $1) })  // all of them known names
    }

    /// Reads an object with any fields.
    func object() throws(ModditError) -> [ExactText: JSONField] {
        guard case .object(let fields) = value else { throw wrong(want: "an object") }
        var result: [ExactText: JSONField] = [:]
        for (name, field) in fields { result[name] = inner(field, path.isEmpty ? name.text : ".\(name)") }
        return result
    }

    /// Reads an object that has one field, whose name says what its value is.
    ///
    /// - Throws: `ModditError.format` for another number of fields, a name that is not one of `names`, or `null`.
    func alternative(_ names: [String]) throws(ModditError) -> (name: String, value: JSONField) {
        let fields = try object()
        guard fields.count == 1, let (name, value) = fields.first, !value.isNull,
            names.contains(where: { ExactText($0) == name })
        else {
            let found = fields.isEmpty ? "nothing" : Self.list(Set(fields.keys))
            throw format("has \(found)", want: "an object with exactly one of \(names.sorted())")
        }
        return (name.text, value)
    }

    /// Reads a list.
    func array() throws(ModditError) -> [JSONField] {
        guard case .array(let items) = value else { throw wrong(want: "a list") }
        return items.enumerated().map { inner($1, "[\($0)]") }
    }

    /// Reads a text.
    func string() throws(ModditError) -> String {
        guard case .string(let text) = value else { throw wrong(want: "a text") }
        return text
    }

    /// Reads `true` or `false`.
    func bool() throws(ModditError) -> Bool {
        guard case .bool(let flag) = value else { throw wrong(want: "true or false") }
        return flag
    }

    /// Reads an integer in a range.
    func integer(in range: ClosedRange<Int> = Int.min...Int.max) throws(ModditError) -> Int {
        switch value {
        case .integer(let number) where number < range.lowerBound: throw outOfRange("at least \(range.lowerBound)")
        case .integer(let number) where number <= range.upperBound: return number
        case .integer, .unsigned: throw outOfRange("at most \(range.upperBound)")
        default: throw wrong(want: "an integer")
        }
    }

    /// Reads a number, whole or not.
    func number() throws(ModditError) -> Double {
        switch value {
        case .integer(let number): return Double(number)
        case .unsigned(let number): return Double(number)
        case .number(let number): return number
        default: throw wrong(want: "a number")
        }
    }

    /// Makes the error for something that is wrong with the value.
    func format(_ problem: String, want: String) -> ModditError {
        .format(message(problem, want: want))
    }

    /// Makes the error for a value of another kind.
    func wrong(want: String) -> ModditError {
        format("is \(value.shown)", want: want)
    }

    /// Makes the error for a number that is too small or too large.
    func outOfRange(_ wanted: String) -> ModditError {
        .valueRange(message("is \(value.shown)", want: wanted))
    }

    /// Says what is wrong.
    func message(_ problem: String, want: String) -> String {
        "[\(component)] \(file): \(path.isEmpty ? "it" : path) \(problem), want \(want); convert the checkpoint again"
    }

    /// Points at a value within this one.
    func inner(_ value: JSON, _ step: String) -> JSONField {
        JSONField(value, file: file, path: path + step, component: component)
    }

    private static func list(_ names: Set<ExactText>) -> String {
        names.sorted().prefix(6).map(\.text.quoted).joined(separator: ", ")
    }
}
