import Foundation

/// What decides a picture, besides the model.
public struct GenerationSettings: Sendable, Hashable {
    /// Denoising steps where none are chosen.
    public static let defaultSteps = 20
    /// Guidance scale where none is chosen.
    public static let defaultGuidanceScale = 4.5

    /// What to draw.
    public var prompt: String
    /// What to avoid; without effect when not guided.
    public var negativePrompt: String
    /// The same noise as `torch.Generator("cpu").manual_seed(seed)`, of which only the low 32 bits count.
    public var seed: Int
    /// Denoising steps.
    public var steps: Int
    /// How much to follow the prompt; 1 or less generates without guidance, in half the time.
    public var guidanceScale: Double
    /// The picture's size; by default the bundle's first.
    public var size: PictureSize?
    /// By default the model's own.
    public var sampler: Sampler?

    /// Makes settings.
    public init(
        prompt: String, negativePrompt: String = "", seed: Int = 0, steps: Int = GenerationSettings.defaultSteps,
        guidanceScale: Double = GenerationSettings.defaultGuidanceScale, size: PictureSize? = nil,
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
    public var isGuided: Bool { guidanceScale > 1 }

    /// The texts to encode, in the order of the batch: negative first, as in diffusers.
    public var texts: [String] { isGuided ? [negativePrompt, prompt] : [prompt] }

    /// The guidance.
    ///
    /// - Throws: `ModditError.valueRange` for a scale that is negative or not finite.
    func guidance() throws(ModditError) -> Guidance {
        guard guidanceScale.isFinite, guidanceScale >= 0 else {
            throw .valueRange("[settings] guidance_scale out of range, got \(guidanceScale), want 0 or more")
        }
        return try Guidance(scale: Float(guidanceScale))
    }
}
