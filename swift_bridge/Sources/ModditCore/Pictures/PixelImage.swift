/// Pixels of a picture or a preview: 4 bytes each, red, green, blue and opacity, row after row from the top.
public struct PixelImage: Sendable, Hashable {
    /// Pixels in a row.
    public let width: Int
    /// Rows.
    public let height: Int
    /// The pixels, (height, width, 4).
    public let rgba: [UInt8]

    /// Makes a picture of its pixels.
    ///
    /// - Throws: `ModditError.shape` if the sizes do not fit.
    public init(width: Int, height: Int, rgba: [UInt8]) throws(ModditError) {
        let pixels = try Self.countPixels(height, width)
        guard rgba.count == 4 * pixels else {
            throw .shape("[image] got \(rgba.count) bytes, want 4 for each of \(height) x \(width) pixels")
        }
        (self.width, self.height, self.rgba) = (width, height, rgba)
    }

    /// Makes the picture of a decoder's output.
    ///
    /// Shapes: planes (3, height, width), -1 (black) to 1 (full); values outside are clipped.
    ///
    /// - Throws: `ModditError.shape` if the sizes do not fit, `ModditError.valueRange` for values that are not finite.
    init(planes: [Float], height: Int, width: Int) throws(ModditError) {
        let pixels = try Self.countPixels(height, width)
        guard planes.count == 3 * pixels else {
            throw .shape("[image] got \(planes.count) values, want 3 planes of \(height) x \(width)")
        }
        var rgba = [UInt8](repeating: 255, count: 4 * pixels)
        for channel in 0..<3 {
            for pixel in 0..<pixels {
                rgba[4 * pixel + channel] = try Self.byte(planes[channel * pixels + pixel] / 2 + 0.5)
            }
        }
        try self.init(width: width, height: height, rgba: rgba)
    }

    /// Makes a small preview of a denoised latent without its decoder.
    ///
    /// Shapes: latents (C, height, width), scaled to a deviation of 1. The first three channels are shown, -3 as black
    /// and 3 as full.
    ///
    /// - Throws: `ModditError.shape` if the sizes do not fit, `ModditError.valueRange` for values that are not finite.
    init(previewOf latents: [Float], channels: Int, height: Int, width: Int) throws(ModditError) {
        let pixels = try Self.countPixels(height, width)
        let (values, isTooLarge) = channels.multipliedReportingOverflow(by: pixels)
        guard channels > 0, !isTooLarge, latents.count == values else {
            throw .shape("[image] got \(latents.count) latent values, want \(channels) planes of \(height) x \(width)")
        }
        let planes = (0..<3).flatMap { plane in
            let start = min(plane, channels - 1) * pixels
            return latents[start..<start + pixels].map { $0 / 3 }
        }
        try self.init(planes: planes, height: height, width: width)
    }

    private static func countPixels(_ height: Int, _ width: Int) throws(ModditError) -> Int {
        let longest = 1 << 15
        guard (1...longest).contains(height), (1...longest).contains(width) else {
            throw .shape("[image] size out of range, got \(height) x \(width), want 1...\(longest) each")
        }
        return height * width
    }

    /// Rounds a value of 0 to 1, halves to even, as the Python runtimes do.
    private static func byte(_ value: Float) throws(ModditError) -> UInt8 {
        guard value.isFinite else {
            throw .valueRange("[image] the picture has values that are not finite; try another compute unit")
        }
        return UInt8((min(max(value, 0), 1) * 255).rounded(.toNearestOrEven))
    }
}
