import Foundation

/// What a user asks of one picture: with the model, all that decides it.
public struct Request: Sendable, Hashable {
    /// Denoising steps where none are chosen.
    public static let defaultSteps = 20
    /// Guidance scale where none is chosen.
    public static let defaultGuidanceScale = 4.5
    /// Seeds that there are: numbers of 64 bits, with a sign or without.
    public static let seeds = Int128(Int64.min)...Int128(UInt64.max)

    /// What to draw.
    public var prompt: String
    /// What to avoid; without effect when not guided.
    public var negativePrompt: String
    /// One of `seeds`: the same noise as `torch.Generator("cpu").manual_seed(seed)`, of which only the low 32 bits
    /// count.
    public var seed: Int128
    /// Denoising steps.
    public var steps: Int
    /// How much to follow the prompt; 1 or less generates without guidance, in half the time.
    public var guidanceScale: Double
    /// The picture's size; by default the bundle's first.
    public var size: PictureSize?
    /// By default the model's own.
    public var sampler: Sampler?

    /// Makes a request.
    public init(
        prompt: String, negativePrompt: String = "", seed: Int128 = 0, steps: Int = Request.defaultSteps,
        guidanceScale: Double = Request.defaultGuidanceScale, size: PictureSize? = nil,
        sampler: Sampler? = nil
    ) {
        self.prompt = prompt
        self.negativePrompt = negativePrompt
        self.seed = seed
        self.steps = steps
        self.guidanceScale = guidanceScale
        self.size = size
        self.sampler = sampler
    }

    /// Whether the negative prompt counts.
    var isGuided: Bool { guidanceScale > 1 }

    /// The texts to encode, in the order of the batch: negative first, as in diffusers.
    var texts: [String] { isGuided ? [negativePrompt, prompt] : [prompt] }

    /// The guidance.
    ///
    /// - Throws: `ModditError.valueRange` for a scale that is out of bounds.
    func guidance() throws(ModditError) -> Guidance {
        guard (0...Double(Bounds.guidance)).contains(guidanceScale) else {
            throw .valueRange(
                "[request] guidance_scale out of range, got \(guidanceScale), want 0...\(Bounds.guidance)")
        }
        return try Guidance(scale: Float(guidanceScale))
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
