// Port of moddit/models/dit.py.

/// Dimensions of a DiT, which draws classes by number.
struct DiTSpec: TransformerSpec {
    static let architecture = "dit"
    static let conditioning = LabelSpec.kind

    let dimensions: TransformerDimensions
    /// Classes, without the one that stands for no class.
    let classes: Int

    init(_ field: JSONField) throws(ModditError) {
        let object = try JSONObject(field, TransformerDimensions.names + ["num_classes"])
        dimensions = try TransformerDimensions(object)
        classes = try object.count("num_classes", most: Bounds.classes)
        try dimensions.check(object)
    }

    func check(_ conditioning: any ConditioningSpec, _ field: JSONField) throws(ModditError) {
        guard let label = conditioning as? LabelSpec else { throw field.wrongConditioning(of: Self.self, conditioning) }
        guard label.names.isEmpty || label.names.count == classes else {
            let wanted = "as many as there are names of labels, \(label.names.count), or no names"
            throw .shape(field.message("has num_classes \(classes)", want: wanted))
        }
    }
}
