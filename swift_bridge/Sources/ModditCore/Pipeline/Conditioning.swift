/// What one row of a batch is drawn from, as a step is told it.
struct Condition: Sendable, Hashable {
    /// By the names that the transformer's packages have for them, each of one row: (1, ...).
    let features: [String: Tensor]

    /// Puts the features of several rows together, in this order: (rows, ...).
    ///
    /// - Throws: `ModditError.shape` if they do not fit together.
    static func batch(_ rows: [Condition]) throws(ModditError) -> [String: Tensor] {
        var features: [String: Tensor] = [:]
        for name in Set(rows.flatMap(\.features.keys)) {
            features[name] = try Tensor(joining: rows.compactMap { $0.features[name] })
        }
        return features
    }
}

/// What the rows of a request are drawn from, made by a conditioning.
struct Conditions: Sendable {
    /// One for each row of a batch, the negative one first if guided.
    let rows: [Condition]
    /// How many tokens each row's text has, the end token included; empty where there is no text.
    let tokens: [Int]
}

/// What a model draws pictures from: what a request has to say, and how a step is told.
protocol Conditioning: Unloadable {
    /// Guidance scale where a request names none.
    var guidanceScale: Double { get }
    /// Names of the classes that it draws; nil if it draws texts.
    var labels: LabelNames? { get }

    /// Checks what a request says, before anything is computed.
    ///
    /// - Throws: `ModditError` for what the model cannot draw.
    func check(_ request: Request) throws(ModditError)

    /// Encodes what a request says, and before it what guidance leads away from.
    func encode(_ request: Request, isGuided: Bool) async throws -> Conditions
}

/// A prompt and a negative prompt, through a tokenizer and a text encoder.
struct TextConditioning: Conditioning {
    let tokenizer: UnigramTokenizer
    let encoder: any TextEncoding
    /// Tokens of every text, filled up.
    let length: Int
    /// Width of the encoder's states.
    let width: Int

    var guidanceScale: Double { Request.textGuidanceScale }
    var labels: LabelNames? { nil }

    func check(_ request: Request) throws(ModditError) {
        if let label = request.label {
            throw .unsupported("[request] label is \(label), but this model draws a text; want a prompt alone")
        }
        for text in [request.prompt, request.negativePrompt] { try Caption.check(text) }
    }

    func encode(_ request: Request, isGuided: Bool) async throws -> Conditions {
        var (rows, counts): ([Condition], [Int]) = ([], [])
        for text in isGuided ? [request.negativePrompt, request.prompt] : [request.prompt] {
            try Task.checkCancellation()
            let tokens = try tokenizer.encodeCaption(text, length: length)
            let states = try await encoder.encode(tokens)
            guard states.count == length * width else {
                throw ModditError.shape(
                    "[pipeline] the text encoder gave \(states.count) values, want \(length) rows of \(width)")
            }
            rows.append(
                Condition(features: [
                    "text": try Tensor(states, shape: [1, length, width]),
                    "text_mask": try Tensor(tokens.mask.map { Float($0) }, shape: [1, length]),
                ]))
            counts.append(tokens.mask.reduce(0) { $0 + Int($1) })
        }
        return Conditions(rows: rows, tokens: counts)
    }

    func unload() async { await encoder.unload() }
}

/// The number of a class, by itself.
struct LabelConditioning: Conditioning {
    /// Classes, without the one that stands for no class.
    let classes: Int
    let labels: LabelNames?

    var guidanceScale: Double { Request.labelGuidanceScale }

    func check(_ request: Request) throws(ModditError) {
        for (name, text) in [("prompt", request.prompt), ("negative_prompt", request.negativePrompt)] {
            guard text.isEmpty else {
                throw .unsupported(
                    "[request] \(name) is \(text.quoted), but this model draws a class; want a label alone")
            }
        }
        let range = "0..\(classes - 1)"
        guard let label = request.label else {
            throw .missing("[request] no label, though this model draws a class; want its number in \(range)")
        }
        guard (0..<classes).contains(label) else {
            throw .valueRange("[request] label out of range, got \(label), want \(range)")
        }
    }

    func encode(_ request: Request, isGuided: Bool) async throws -> Conditions {
        let numbers = (isGuided ? [classes] : []) + [request.label].compactMap { $0 }
        let rows = try numbers.map { number in
            Condition(features: ["labels": try Tensor(.int32([Int32(number)]), shape: [1])])
        }
        return Conditions(rows: rows, tokens: [])
    }

    /// There is nothing in memory.
    func unload() async {}
}
