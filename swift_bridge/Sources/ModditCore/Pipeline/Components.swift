/// What a denoiser is given for one call.
struct DenoiserInput: Sendable, Hashable {
    /// The function to run; its `batch` is B.
    let function: StepFunction
    /// Scaled for the model, (B, C, h, w).
    let latents: [Float]
    /// The same for the whole batch.
    let timestep: Float
    /// One for each row of the batch.
    let conditions: [Condition]
}

/// Something that takes memory, and can give it back until it is used again.
protocol Unloadable: Sendable {
    /// Gives memory back.
    func unload() async
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

/// Turns latents into a picture.
protocol LatentDecoding: Unloadable {
    /// Decodes latents as the transformer has them, (C, h, w).
    ///
    /// - Returns: red, green and blue planes, -1 to 1, (3, height, width) of `size`.
    func decode(_ latents: [Float], size: PictureSize) async throws -> [Float]
}
