import Foundation

/// One step that has been taken.
public struct StepResult: Sendable, Hashable {
    /// From 0.
    public let index: Int
    /// Number of steps.
    public let total: Int
    /// Its timestep.
    package let timestep: Double
    /// Region of the timestep.
    let region: Int
    /// Name of the function that computed it; nil where the step is reused.
    package let function: String?
    /// A small picture of what the model expects, if asked for.
    public let preview: PixelImage?
}

/// What a generation reports when a part of it is done.
public enum Stage: Sendable {
    /// What to draw is encoded; how many tokens each text has, the end token included, and none for a class.
    case encoded(tokens: [Int])
    /// A step is taken.
    case step(StepResult)
    /// The picture is there.
    case decoded(Picture)
}

/// A finished picture and how it came about.
public struct Picture: Sendable, Hashable {
    /// The pixels.
    public let image: PixelImage
    /// Latents that it was decoded from, (C, h, w).
    let latents: [Float]
    /// How it was made.
    package let metadata: PictureMetadata

    /// The file of the picture, which tells how it was made.
    public func png() throws(ModditError) -> Data {
        try PNG.encode(image, texts: metadata.texts)
    }
}
