/// The fields of an object, checked to be exactly the wanted ones.
struct JSONObject: Sendable {
    private let fields: [String: JSONField]
    private let whole: JSONField

    /// Reads an object that has all the `names` and no other.
    ///
    /// - Throws: `ModditError.format` for unknown or missing fields.
    init(_ field: JSONField, _ names: [String]) throws(ModditError) {
        fields = try field.object(names)
        whole = field
    }

    /// A field.
    subscript(name: String) -> JSONField {
        get throws(ModditError) {
            guard let field = fields[name] else { throw whole.format("lacks '\(name)'", want: "it") }
            return field
        }
    }

    /// Reads a field that may be `null`.
    func optional<Value>(
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
    /// Reads a list whose length is in a range, which is checked before its items are read.
    func list<Item>(
        _ range: ClosedRange<Int>, _ read: (JSONField) throws(ModditError) -> Item
    ) throws(ModditError) -> [Item] {
        let fields = try array()
        try check(length: fields.count, in: range)
        var items: [Item] = []
        for field in fields { items.append(try read(field)) }
        return items
    }

    /// Reads an object with names of any kind, whose number is in a range.
    func dictionary<Item>(
        _ range: ClosedRange<Int>, _ read: (JSONField) throws(ModditError) -> Item
    ) throws(ModditError) -> [ExactText: Item] {
        let fields = try object()
        try check(length: fields.count, in: range)
        var items: [ExactText: Item] = [:]
        for (name, field) in fields {
            guard (1...Bounds.name).contains(name.text.unicodeScalars.count) else {
                throw format("has the key \(name.text.quoted)", want: "keys of 1 to \(Bounds.name) characters")
            }
            items[name] = try read(field)
        }
        return items
    }

    /// Reads a number in a range.
    func number(in range: ClosedRange<Double>) throws(ModditError) -> Double {
        let number = try number()
        guard number >= range.lowerBound else { throw outOfRange("at least \(range.lowerBound)") }
        guard number <= range.upperBound else { throw outOfRange("at most \(range.upperBound)") }
        return number
    }

    /// Reads a text whose number of characters, which are code points, is in a range.
    func text(_ range: ClosedRange<Int>) throws(ModditError) -> String {
        let text = try string()
        try check(length: text.unicodeScalars.count, in: range)
        return text
    }

    /// Reads a name.
    func name() throws(ModditError) -> String {
        try text(1...Bounds.name)
    }

    private func check(length: Int, in range: ClosedRange<Int>) throws(ModditError) {
        guard length >= range.lowerBound else {
            throw format("is of length \(length)", want: "at least \(range.lowerBound)")
        }
        guard length <= range.upperBound else {
            throw format("is of length \(length)", want: "at most \(range.upperBound)")
        }
    }
}
