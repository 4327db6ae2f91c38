// Port of moddit/conditioning.py.

/// What pictures can be drawn from; something further is a specification, and a row here.
private let conditionings: [any ConditioningSpec.Type] = [TextSpec.self, LabelSpec.self]

/// Reads what a model's pictures are drawn from, by its kind.
func readConditioning(_ field: JSONField) throws(ModditError) -> any ConditioningSpec {
    let (name, value) = try field.alternative(conditionings.map { $0.kind })
    guard let kind = conditionings.first(where: { $0.kind == name }) else { throw field.wrong(want: name) }
    return try kind.init(value)
}

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

    /// Reads the specification strictly.
    init(_ field: JSONField) throws(ModditError)

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
    static let components = [PackageRole.textEncoder.rawValue, "tokenizer"]
    static let roles = [PackageRole.textEncoder]

    /// The text encoder.
    let encoder: T5Spec
    /// Text tokens, the end token included.
    let maxSequenceLength: Int

    var textTokens: Int { maxSequenceLength }

    init(_ field: JSONField) throws(ModditError) {
        let object = try JSONObject(field, ["encoder", "max_sequence_length"])
        encoder = try T5Spec(object["encoder"])
        maxSequenceLength = try object.count("max_sequence_length", most: Bounds.textTokens)
    }

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

    init(_ field: JSONField) throws(ModditError) {
        names = try JSONObject(field, ["names"])["names"].list(0...Bounds.classes) { item throws(ModditError) in
            try item.text(0...Bounds.name)
        }
    }

    func features(batch: Int) -> [String: Feature] {
        ["labels": Feature([batch], .int32)]
    }

    func encoderFunction(_ name: String) -> GraphFunction? { nil }

    func open(_ bundle: ModelBundle, runner: any PackageRunning) throws(ModditError) -> any Conditioning {
        open(classes: bundle.manifest.spec.transformer.classes)
    }

    /// Makes what encodes labels, of so many classes.
    func open(classes: Int) -> LabelConditioning {
        LabelConditioning(classes: classes, labels: LabelNames(classes: classes, names: names))
    }
}

extension JSONField {
    /// Makes the error for a transformer that cannot draw from what its manifest says.
    func wrongConditioning(of spec: any TransformerSpec.Type, _ found: any ConditioningSpec) -> ModditError {
        let problem = "has '\(spec.architecture)' conditioned on a \(type(of: found).kind)"
        return .unsupported(message(problem, want: "a \(spec.conditioning)"))
    }
}
