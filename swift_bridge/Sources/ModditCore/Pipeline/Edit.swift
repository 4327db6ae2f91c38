/// A change of a picture: the image that it starts from, and what of it is drawn anew.
///
/// ```swift
/// let edit = try Edit(image: photo, mask: PixelMask(x: 16, y: 8, width: 32, height: 24, of: photo))
/// let picture = try await pipeline.generate(Request(prompt: "a small blue square"), from: edit)
/// ```
public struct Edit: Sendable, Hashable {
    /// Strength where none is chosen, without a mask: that of diffusers' img2img.
    package static let imageStrength = 0.8
    /// Strength where none is chosen, with a mask: that of diffusers' inpainting.
    package static let maskStrength = 1.0

    /// That it starts from; what was transparent is on white.
    public let image: PixelImage
    /// What is drawn anew; nil to draw all of it anew.
    public let mask: PixelMask?
    /// Share of the steps that are taken, the last ones, 0 to 1: the less, the nearer is the picture to the image.
    public let strength: Double

    /// Makes an edit.
    ///
    /// - Parameters:
    ///   - image: to start from; upright, as people see it.
    ///   - mask: what is drawn anew, of the image's size; every other pixel stays as it is.
    ///   - strength: by default 0.8, with a mask 1.
    /// - Throws: `ModditError.shape` for a mask of another size, `ModditError.valueRange` for one that marks nothing or
    ///   all of the image.
    public init(image: PixelImage, mask: PixelMask? = nil, strength: Double? = nil) throws(ModditError) {
        self.image = try image.onWhite()
        self.mask = mask
        self.strength = strength ?? (mask == nil ? Self.imageStrength : Self.maskStrength)
        guard let mask else { return }
        guard mask.height == image.height, mask.width == image.width else {
            throw .shape(
                "[mask] has height \(mask.height) and width \(mask.width), want those of the image, \(image.height) and "
                    + "\(image.width)")
        }
        guard mask.pixels.contains(true) else {
            throw .valueRange("[mask] marks nothing, want true where the image is drawn anew")
        }
        guard mask.pixels.contains(false) else {
            throw .valueRange(
                "[mask] marks all of the image; leave the mask out to draw all of it from the image, or the image too")
        }
    }
}

/// An edit in the size that is drawn.
struct ScaledEdit: Sendable, Hashable {
    /// As it was asked for.
    let edit: Edit
    /// That is drawn.
    let size: PictureSize
    /// The image in that size.
    let start: PixelImage
    /// What of it is drawn anew.
    let mask: PixelMask?
    private let covers: Bool  // whether the image was scaled to cover the size and cropped, or stretched to it

    /// Scales an edit.
    ///
    /// Where no size is wanted, it is the one nearest to the image's shape, to which the image is stretched: by half a
    /// patch at most, or because of a mask, so that nothing is cropped away. Otherwise it is cropped.
    ///
    /// - Parameters:
    ///   - edit: to scale.
    ///   - wanted: the size that is asked for.
    ///   - sizes: that can be drawn, at least one.
    ///   - unit: side of a patch, pixels.
    /// - Throws: `ModditError.valueRange` if all that a mask marks is cropped away.
    init(_ edit: Edit, wanted: PictureSize?, sizes: [PictureSize], unit: Int) throws(ModditError) {
        let own = PictureSize(height: edit.image.height, width: edit.image.width)
        let nearest = sizes.min { own.distance(to: $0) < own.distance(to: $1) }
        let size = wanted ?? nearest ?? own
        let whole = own.covering(size)
        let isStretched = max(whole.height - size.height, whole.width - size.width) <= unit / 2
        self.edit = edit
        self.size = size
        covers = wanted != nil || edit.mask == nil && !isStretched
        start = try edit.image.scaled(to: size, covers: covers)
        mask = try edit.mask?.scaled(to: size, covers: covers)
    }

    /// Gives the result: what was drawn, or where there is a mask the image, cropped if it was, with what was drawn in it.
    func finish(_ drawn: PixelImage) throws(ModditError) -> PixelImage {
        guard let whole = edit.mask, let mask else { return drawn }
        if covers { return try start.pasting(drawn, where: mask) }
        let own = PictureSize(height: edit.image.height, width: edit.image.width)
        return try edit.image.pasting(drawn.resized(to: own), where: whole)
    }
}

extension PictureSize {
    /// How far two shapes are apart, whatever their areas.
    fileprivate func distance(to size: PictureSize) -> Double {
        let (a, b) = (Double(height) * Double(size.width), Double(size.height) * Double(width))
        return max(a, b) / min(a, b)
    }
}
