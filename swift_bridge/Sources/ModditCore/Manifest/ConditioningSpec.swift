// Port of moddit/conditioning.py.

/// What a model's pictures are drawn from, as its manifest says it.
protocol ConditioningSpec: Sendable {
    /// Its name in a manifest.
    static var kind: String { get }
    /// Components of a bundle that it needs, beside the transformer and the VAE.
    static var components: [String] { get }
    /// What packages of these components do.
    static var roles: [PackageRole] { get }

    /// Tokens of a text; 0 where there is none.
    var textTokens: Int { get }

    /// What a step is told of it, for a batch.
    func features(batch: Int) -> [String: Feature]

    /// The function of its encoder's package; nil where it has none.
    func encoderFunction(_ name: String) -> GraphFunction?

    /// Makes what encodes the requests of a bundle.
    ///
    /// - Throws: `ModditError` if the bundle lacks a part.
    func open(_ bundle: ModelBundle, runner: any PackageRunning) throws(ModditError) -> any Conditioning
}

/// A prompt and a negative prompt, through a tokenizer and a text encoder.
struct TextSpec: ConditioningSpec {
    static let kind = "text"
    static let components = ["text_encoder", "tokenizer"]
    static let roles = [PackageRole.textEncoder]

    /// The text encoder.
    let encoder: T5Spec
    /// Text tokens, the end token included.
    let maxSequenceLength: Int

    var textTokens: Int { maxSequenceLength }

    func features(batch: Int) -> [String: Feature] {
        ["text": Feature([batch, maxSequenceLength, encoder.width]), "text_mask": Feature([batch, maxSequenceLength])]
    }

    func encoderFunction(_ name: String) -> GraphFunction? {
        let shape = [1, maxSequenceLength]
        return GraphFunction(
            name, inputs: ["input_ids": Feature(shape, .int32), "text_mask": Feature(shape)],
            outputs: ["text": Feature(shape + [encoder.width])])
    }

    func open(_ bundle: ModelBundle, runner: any PackageRunning) throws(ModditError) -> any Conditioning {
        TextConditioning(
            tokenizer: try bundle.tokenizer(), encoder: try GraphTextEncoder(bundle.graphs(), runner: runner),
            length: maxSequenceLength, width: encoder.width)
    }
}

/// The number of a class; the one after the last stands for no class, as guidance needs it.
struct LabelSpec: ConditioningSpec {
    static let kind = "label"
    static let components: [String] = []
    static let roles: [PackageRole] = []

    /// Of every class in order, synonyms with commas between them, or of none.
    let names: [String]

    var textTokens: Int { 0 }

    func features(batch: Int) -> [String: Feature] {
        ["labels": Feature([batch], .int32)]
    }

    func encoderFunction(_ name: String) -> GraphFunction? { nil }

    func open(_ bundle: ModelBundle, runner: any PackageRunning) throws(ModditError) -> any Conditioning {
        let classes = bundle.manifest.spec.transformer.classes
        return LabelConditioning(classes: classes, labels: LabelNames(classes: classes, names: names))
    }
}

extension JSONField {
    /// Makes the error for a transformer that cannot draw from what its manifest says.
    func wrongConditioning(of spec: any TransformerSpec.Type, _ found: any ConditioningSpec) -> ModditError {
        .unsupported(message("is '\(spec.architecture)'", want: "one that draws from a \(type(of: found).kind)"))
    }
}
