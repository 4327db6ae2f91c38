// Port of moddit/models/transformer.py.

/// The architectures that there are; a further one is a specification, and a row here.
private let architectures: [any TransformerSpec.Type] = [PixArtSpec.self, DiTSpec.self]

/// Reads the transformer of a model, by its architecture.
func readTransformer(_ field: JSONField) throws(ModditError) -> any TransformerSpec {
    let (name, value) = try field.alternative(architectures.map { $0.architecture })
    guard let kind = architectures.first(where: { $0.architecture == name }) else { throw field.wrong(want: name) }
    return try kind.init(value)
}

/// Dimensions of a denoising transformer, of one architecture.
protocol TransformerSpec: Sendable {
    /// Its name in a manifest.
    static var architecture: String { get }
    /// Kind of what it draws from.
    static var conditioning: String { get }

    /// What every architecture has.
    var dimensions: TransformerDimensions { get }
    /// What a step is told, and what its packages hand on.
    var features: StepFeatures { get }
    /// Classes that it draws by number; 0 if it draws texts.
    var classes: Int { get }

    /// Counts the FLOPs of one block that processes `kept` tokens, for a batch of one.
    func blockFLOPs(kept: Double, textTokens: Double) -> Double

    /// Reads the specification strictly.
    init(_ field: JSONField) throws(ModditError)

    /// Checks that the model can draw from what its manifest says.
    ///
    /// - Throws: `ModditError.unsupported` for another conditioning, `ModditError.shape` for one of other sizes, with
    ///   the place of the specification.
    func check(_ conditioning: any ConditioningSpec, _ field: JSONField) throws(ModditError)
}

extension TransformerSpec {
    /// None.
    var classes: Int { 0 }
}

/// What every denoising transformer over patches of a latent has.
struct TransformerDimensions: Sendable, Hashable {
    /// Fields of its specification that it is read from.
    static let names = [
        "num_layers", "num_attention_heads", "attention_head_dim", "in_channels", "out_channels", "patch_size",
        "sample_size", "attention_bias", "norm_eps",
    ]

    /// Blocks.
    let layers: Int
    /// Heads of an attention.
    let heads: Int
    /// Width of a token.
    let hiddenSize: Int
    /// Channels of a latent.
    let channels: Int
    /// Side of a patch, latent pixels.
    let patchSize: Int
    /// Side of the latents that the model was trained on, pixels of a latent.
    let sampleSize: Int
    /// Channels that it predicts, a variance included.
    let outputs: Int

    /// Reads the fields of `names`.
    init(_ object: JSONObject) throws(ModditError) {
        layers = try object.count("num_layers", most: Bounds.layers)
        heads = try object.count("num_attention_heads", most: Bounds.heads)
        hiddenSize = try object.count("attention_head_dim", most: Bounds.headWidth) * heads
        channels = try object.count("in_channels", most: Bounds.channels)
        outputs = try object.count("out_channels", most: Bounds.channels)
        patchSize = try object.count("patch_size", most: Bounds.patch)
        sampleSize = try object.count("sample_size", most: Bounds.side)
        _ = try object["attention_bias"].bool()
        _ = try object["norm_eps"].number(in: 0...1)
    }

    /// Checks that the sizes divide, and that the channels are those of a prediction, with or without a variance.
    ///
    /// - Throws: `ModditError.shape` and `ModditError.unsupported`, with the places of the fields.
    func check(_ object: JSONObject) throws(ModditError) {
        guard sampleSize % patchSize == 0 else {
            let wanted = "a multiple of patch_size, \(patchSize)"
            throw .shape(try object["sample_size"].message("is \(sampleSize)", want: wanted))
        }
        guard hiddenSize % 4 == 0 else {
            let wanted = "one that makes a width of a multiple of 4, as positions need"
            let found = "makes a width of \(hiddenSize)"
            throw .shape(try object["attention_head_dim"].message(found, want: wanted))
        }
        guard [channels, 2 * channels].contains(outputs) else {
            let wanted = "in_channels, \(channels), or twice that with a variance"
            throw .unsupported(try object["out_channels"].message("is \(outputs)", want: wanted))
        }
    }

    /// Counts the tokens of a latent.
    ///
    /// - Throws: `ModditError.shape` if a side is not a positive multiple of the patch size, or too large.
    func tokens(height: Int, width: Int) throws(ModditError) -> Int {
        let sides = 1...Bounds.side
        let isWhole = height % patchSize == 0 && width % patchSize == 0
        guard sides.contains(height), sides.contains(width), isWhole else {
            throw .shape("[spec] latent size \(height)x\(width) is not made of whole patches of \(patchSize)")
        }
        return (height / patchSize) * (width / patchSize)
    }
}
