// Port of moddit/models/pixart.py.

/// Dimensions of a PixArt transformer (alpha or Sigma), which draws texts.
struct PixArtSpec: TransformerSpec {
    static let architecture = "pixart"
    static let conditioning = TextSpec.kind

    let dimensions: TransformerDimensions
    /// Width of the text encoder's states.
    let captionChannels: Int
    /// Whether the model is told the picture's resolution and aspect ratio.
    let usesAdditionalConditions: Bool

    init(_ field: JSONField) throws(ModditError) {
        let names = ["cross_attention_dim", "caption_channels", "interpolation_scale", "use_additional_conditions"]
        let object = try JSONObject(field, TransformerDimensions.names + names)
        dimensions = try TransformerDimensions(object)
        let width = try object.count("cross_attention_dim", most: Bounds.width)
        captionChannels = try object.count("caption_channels", most: Bounds.width)
        _ = try object["interpolation_scale"].number(in: scales)
        usesAdditionalConditions = try object["use_additional_conditions"].bool()
        guard width == dimensions.hiddenSize else {
            let wanted = "the hidden size, \(dimensions.hiddenSize)"
            throw .unsupported(try object["cross_attention_dim"].message("is \(width)", want: wanted))
        }
        try dimensions.check(object)
    }

    func check(_ conditioning: any ConditioningSpec, _ field: JSONField) throws(ModditError) {
        guard let text = conditioning as? TextSpec else { throw field.wrongConditioning(of: Self.self, conditioning) }
        guard captionChannels == text.encoder.width else {
            let wanted = "the text encoder's d_model, \(text.encoder.width)"
            throw .shape(field.message("has caption_channels \(captionChannels)", want: wanted))
        }
    }
}
