import Foundation

/// What a user asks of one picture: with the model, all that decides it.
public struct Request: Sendable, Hashable {
    /// Denoising steps where none are chosen.
    public static let defaultSteps = 20
    /// Guidance scale where none is chosen, of models that draw texts.
    package static let textGuidanceScale = 4.5
    /// Guidance scale where none is chosen, of models that draw classes.
    package static let labelGuidanceScale = 4.0
    /// Seeds that there are: numbers of 64 bits, with a sign or without.
    public static let seeds = Int128(Int64.min)...Int128(UInt64.max)

    /// What to draw; empty for a model that draws a class.
    public var prompt: String
    /// What to avoid; without effect when not guided.
    public var negativePrompt: String
    /// Number of the class to draw, for a model that draws one.
    public var label: Int?
    /// One of `seeds`: the same noise as `torch.Generator("cpu").manual_seed(seed)`, of which only the low 32 bits
    /// count.
    public var seed: Int128
    /// Denoising steps.
    public var steps: Int
    /// How much to follow the prompt or label; 1 or less generates without guidance, in half the time. By default 4.5
    /// for a prompt, 4 for a label.
    public var guidanceScale: Double?
    /// The picture's size; by default the bundle's first.
    public var size: PictureSize?
    /// By default the model's own.
    public var sampler: Sampler?
    /// The model is asked in the first of so many steps, and its clean latents serve the others.
    public var reuse: Int

    /// Asks a model that draws texts.
    public init(
        prompt: String, negativePrompt: String = "", seed: Int128 = 0, steps: Int = Request.defaultSteps,
        guidanceScale: Double? = nil, size: PictureSize? = nil, sampler: Sampler? = nil, reuse: Int = 1
    ) {
        self.prompt = prompt
        self.negativePrompt = negativePrompt
        self.seed = seed
        self.steps = steps
        self.guidanceScale = guidanceScale
        self.size = size
        self.sampler = sampler
        self.reuse = reuse
    }

    /// Asks a model that draws classes.
    public init(
        label: Int, seed: Int128 = 0, steps: Int = Request.defaultSteps, guidanceScale: Double? = nil,
        size: PictureSize? = nil, sampler: Sampler? = nil, reuse: Int = 1
    ) {
        self.init(
            prompt: "", seed: seed, steps: steps, guidanceScale: guidanceScale, size: size, sampler: sampler,
            reuse: reuse)
        self.label = label
    }

    /// Checks the seed.
    ///
    /// - Throws: `ModditError.valueRange` for one that is out of bounds.
    func check() throws(ModditError) {
        guard Self.seeds.contains(seed) else {
            throw .valueRange("[request] seed out of range, got \(seed), want \(Self.seeds)")
        }
    }
}
