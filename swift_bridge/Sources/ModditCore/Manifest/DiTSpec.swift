// Port of moddit/models/dit.py.

/// Dimensions of a DiT, which draws classes by number.
struct DiTSpec: TransformerSpec {
    static let architecture = "dit"
    private static let mostClasses = 100_000

    let dimensions: TransformerDimensions
    /// Classes, without the one that stands for no class.
    let classes: Int

    init(_ field: JSONField) throws(ModditError) {
        let object = try JSONObject(field, TransformerDimensions.names + ["num_classes"])
        dimensions = try TransformerDimensions(object)
        classes = try object.count("num_classes", most: Self.mostClasses)
        try dimensions.check(object)
    }

    func check(_ conditioning: any ConditioningSpec, _ field: JSONField) throws(ModditError) {
        guard let label = conditioning as? LabelSpec else { throw field.wrongConditioning(of: Self.self, conditioning) }
        guard label.names.isEmpty || label.names.count == classes else {
            let found = "has num_classes \(classes)"
            throw .shape(field.message(found, want: "one name for each or none, of which there are \(label.names.count)"))
        }
    }
}
