/// The fields of an object, checked to be exactly the wanted ones.
public struct JSONObject: Sendable {
    private let fields: [String: JSONField]
    private let whole: JSONField

    /// Reads an object that has all the `names` and no other.
    ///
    /// - Throws: `ModditError.format` for unknown or missing fields.
    public init(_ field: JSONField, _ names: [String]) throws(ModditError) {
        fields = try field.object(names)
        whole = field
    }

    /// A field.
    public subscript(name: String) -> JSONField {
        get throws(ModditError) {
            guard let field = fields[name] else { throw whole.format("no '\(name)'", want: "one") }
            return field
        }
    }

    /// Reads a field that may be `null`.
    public func optional<Value>(
        _ name: String, _ read: (JSONField) throws(ModditError) -> Value
    ) throws(ModditError) -> Value? {
        let field = try self[name]
        return field.isNull ? nil : try read(field)
    }

    /// Reads an integer of 1 up to a bound.
    func count(_ name: String, most: Int) throws(ModditError) -> Int {
        try self[name].integer(in: 1...most)
    }
}

extension JSONField {
    /// Reads a list of items, of at least some number.
    func list<Item>(
        atLeast least: Int = 0, _ read: (JSONField) throws(ModditError) -> Item
    ) throws(ModditError) -> [Item] {
        var items: [Item] = []
        for field in try array() { items.append(try read(field)) }
        guard items.count >= least else { throw format("got an empty list", want: "one that is not empty") }
        return items
    }

    /// Reads a list of at least one integer, all in a range.
    func integers(in range: ClosedRange<Int>) throws(ModditError) -> [Int] {
        try list(atLeast: 1) { field throws(ModditError) in try field.integer(in: range) }
    }

    /// Reads a text that is not empty.
    func name() throws(ModditError) -> String {
        let text = try string()
        guard !text.isEmpty else { throw format("got an empty text", want: "one that is not empty") }
        return text
    }
}
