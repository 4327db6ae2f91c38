// Port of moddit/edits.py and of read_mask in moddit/pictures.py.

/// What of an image is drawn anew.
public struct PixelMask: Sendable, Hashable {
    /// Pixels in a row.
    public let width: Int
    /// Rows.
    public let height: Int
    /// Whether each pixel is drawn anew, (height, width), row after row from the top.
    public let pixels: [Bool]

    /// What is more is marked, of 255.
    private static let half = 127

    /// Makes a mask of its pixels.
    ///
    /// - Throws: `ModditError.shape` if the sizes do not fit.
    public init(width: Int, height: Int, pixels: [Bool]) throws(ModditError) {
        guard width > 0, height > 0, pixels.count % width == 0, pixels.count / width == height else {
            throw .shape("[mask] got \(pixels.count) pixels, want \(height) x \(width)")
        }
        self.init(width: width, height: height, pixels)
    }

    /// Marks a box of an image.
    ///
    /// - Parameters:
    ///   - x: pixels from the image's left.
    ///   - y: pixels from its top.
    ///   - width: of the box, at least 1.
    ///   - height: of the box, at least 1.
    ///   - image: of which it is a part.
    /// - Throws: `ModditError.shape` for a box that is empty or reaches outside.
    public init(x: Int, y: Int, width: Int, height: Int, of image: PixelImage) throws(ModditError) {
        guard (0..<image.width).contains(x), (0..<image.height).contains(y), (1...image.width - x).contains(width),
            (1...image.height - y).contains(height)
        else {
            throw .shape(
                "[mask] box:\(x),\(y),\(width),\(height) is not inside the image, want a box in a width of "
                    + "\(image.width) and a height of \(image.height), of a pixel at least")
        }
        let marked = (0..<image.width * image.height).map { index in
            let (row, column) = index.quotientAndRemainder(dividingBy: image.width)
            return (y..<y + height).contains(row) && (x..<x + width).contains(column)
        }
        self.init(width: image.width, height: image.height, marked)
    }

    /// Marks what is transparent in a picture, as editors of images export it; if nothing is, what is white, and of
    /// greys what is above half.
    ///
    /// - Throws: `ModditError.valueRange` for a picture that has no contrast or marks nothing.
    public init(_ picture: PixelImage) throws(ModditError) {
        try self.init(picture, levels: picture.isTransparent ? picture.transparency : picture.whiteness)
    }

    /// Marks what is transparent in a picture, more than half.
    ///
    /// - Throws: `ModditError.valueRange` for a picture that has no contrast or marks nothing.
    public init(alphaOf picture: PixelImage) throws(ModditError) {
        try self.init(picture, levels: picture.transparency)
    }

    private init(_ picture: PixelImage, levels: [Int]) throws(ModditError) {
        let (low, high) = (levels.min() ?? 0, levels.max() ?? 0)
        guard low != high || low == 0 || high == 255 else {
            throw .valueRange("[mask] has no contrast, all its pixels are \(high) of 255; want white on black")
        }
        guard high > Self.half else {
            throw .valueRange(
                "[mask] marks nothing, the most that a pixel is white or transparent is \(high) of 255, want more than "
                    + "\(Self.half) where the image is drawn anew")
        }
        self.init(width: picture.width, height: picture.height, levels.map { $0 > Self.half })
    }

    /// Makes a mask of as many pixels as it has.
    init(width: Int, height: Int, _ pixels: [Bool]) {
        (self.width, self.height, self.pixels) = (width, height, pixels)
    }

    /// SHA-256 of the size and the pixels, of 0 and 1: 64 hexadecimal digits.
    var digest: String {
        SHA256Hash.hash(Array("\(height)x\(width)\n".utf8) + pixels.map { $0 ? 1 : 0 })
    }

    /// Marks what is at most so many pixels from something marked, in rows and in columns.
    func dilated(_ reach: Int) -> PixelMask {
        dilatedRows(reach).transposed.dilatedRows(reach).transposed
    }

    /// Marks what is not.
    var inverted: PixelMask { PixelMask(width: width, height: height, pixels.map { !$0 }) }

    /// Rows as columns.
    var transposed: PixelMask {
        PixelMask(
            width: height, height: width,
            (0..<width).flatMap { column in (0..<height).map { pixels[$0 * width + column] } })
    }

    private func dilatedRows(_ reach: Int) -> PixelMask {
        var marked = pixels
        for index in pixels.indices where pixels[index] {
            let start = index / width * width
            for near in max(index - reach, start)...min(index + reach, start + width - 1) { marked[near] = true }
        }
        return PixelMask(width: width, height: height, marked)
    }
}

extension PixelMask {
    /// Scales the mask as its image is: a pixel is marked if it covers any that is, so that no thin stroke is lost.
    ///
    /// - Parameters:
    ///   - size: to scale to.
    ///   - covers: whether the image is scaled to cover the size and cropped, equally on both sides, or stretched to it.
    /// - Throws: `ModditError.valueRange` if all that is marked is cropped away.
    func scaled(to size: PictureSize, covers: Bool) throws(ModditError) -> PixelMask {
        let own = PictureSize(height: height, width: width)
        let whole = covers ? own.covering(size) : size
        let mask = scaledRows(size.width, of: whole.width).transposed.scaledRows(size.height, of: whole.height)
            .transposed
        guard mask.pixels.contains(true) else {
            throw .valueRange(
                "[mask] all that it marks is cropped away at height \(size.height) and width \(size.width); want a size "
                    + "of the image's shape, or none")
        }
        return mask
    }

    /// Scales every row to so many pixels in all, of which the middle ones stay.
    private func scaledRows(_ wanted: Int, of whole: Int) -> PixelMask {
        let first = (whole - wanted) / 2
        let ranges = (first..<first + wanted).map { $0 * width / whole..<(($0 + 1) * width + whole - 1) / whole }
        let marked = (0..<height).flatMap { row in
            ranges.map { range in range.contains { pixels[row * width + $0] } }
        }
        return PixelMask(width: wanted, height: height, marked)
    }

    /// Tells for each pixel of a latent whether the mask touches it, (height / scale, width / scale).
    func latent(scale: Int) -> [Bool] {
        let (rows, columns) = (height / scale, width / scale)
        return (0..<rows * columns).map { index in
            let corner = index / columns * scale * width + index % columns * scale
            return (0..<scale * scale).contains { pixels[corner + $0 / scale * width + $0 % scale] }
        }
    }
}

extension PixelImage {
    /// Whether anything shows through.
    fileprivate var isTransparent: Bool {
        stride(from: 3, to: rgba.count, by: 4).contains { rgba[$0] < 255 }
    }

    /// How transparent each pixel is, 0 to 255.
    fileprivate var transparency: [Int] {
        stride(from: 3, to: rgba.count, by: 4).map { 255 - Int(rgba[$0]) }
    }

    /// How white each pixel is, 0 to 255, as Pillow's `convert("L")` has it.
    fileprivate var whiteness: [Int] {
        stride(from: 0, to: rgba.count, by: 4).map { place in
            let (red, green, blue) = (Int(rgba[place]), Int(rgba[place + 1]), Int(rgba[place + 2]))
            return (19_595 * red + 38_470 * green + 7_471 * blue + 0x8000) >> 16
        }
    }
}
