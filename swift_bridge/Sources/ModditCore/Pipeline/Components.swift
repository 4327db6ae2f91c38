/// What a denoiser is given for one call.
struct DenoiserInput: Sendable {
    /// The function to run; its `batch` is B.
    let function: StepFunction
    /// Scaled for the model, (B, C, h, w).
    let latents: [Float]
    /// The same for the whole batch.
    let timestep: Float
    /// What the rows of the batch are drawn from, as `Preparing` gives it.
    let told: [String: any FeatureValue]
}

/// Something that takes memory, and can give it back until it is used again.
protocol Unloadable: Sendable {
    /// Gives memory back.
    func unload() async
}

/// Computes what all steps of a picture take, once.
protocol Preparing: Unloadable {
    /// Prepares the calls of some rows.
    ///
    /// - Returns: all that a call is told of them, by the names that the transformer's packages have for it.
    func prepare(_ rows: [Condition]) async throws -> [String: any FeatureValue]
}

/// Computes one denoising step.
protocol Denoiser: Unloadable {
    /// Predicts the noise, or the velocity.
    ///
    /// - Returns: (B, C, h, w), perhaps with C more channels of a variance behind each row's.
    func predict(_ input: DenoiserInput) async throws -> [Float]
}

/// Turns tokens into states.
protocol TextEncoding: Unloadable {
    /// Encodes one text of the model's length, padding included.
    ///
    /// - Returns: states, (L, D); those of padding are meaningless.
    func encode(_ tokens: UnigramTokenizer.Padded) async throws -> [Float]
}

/// Turns a picture into what its latents are drawn from.
protocol ImageEncoding: Unloadable {
    /// Encodes red, green and blue planes, -1 to 1, (3, height, width) of `size`.
    ///
    /// - Returns: moments of latents: means, then logarithms of variances, not scaled, (2 C, h, w).
    func encode(_ planes: [Float], size: PictureSize) async throws -> [Float]
}

/// Turns latents into a picture.
protocol LatentDecoding: Unloadable {
    /// Decodes latents as the transformer has them, (C, h, w).
    ///
    /// - Returns: red, green and blue planes, -1 to 1, (3, height, width) of `size`.
    func decode(_ latents: [Float], size: PictureSize) async throws -> [Float]
}
