// Port of moddit/edits.py, and of fit in moddit/pictures.py. Whatever decides pixels is computed in whole numbers.

extension PixelImage {
    /// SHA-256 of the size and the pixels, without opacity: 64 hexadecimal digits.
    var digest: String {
        var hash = SHA256Hash()
        hash.update(Array("\(height)x\(width)\n".utf8))
        for row in stride(from: 0, to: rgba.count, by: 4 * width) {
            hash.update((0..<3 * width).map { rgba[row + $0 / 3 * 4 + $0 % 3] })
        }
        return hash.finish()
    }

    /// Lays the picture on white, as Pillow's `alpha_composite` does.
    func onWhite() throws(ModditError) -> PixelImage {
        var pixels = rgba
        for pixel in stride(from: 0, to: pixels.count, by: 4) where pixels[pixel + 3] < 255 {
            let opacity = Int(pixels[pixel + 3])
            for channel in pixel..<pixel + 3 {
                let mixed = (Int(pixels[channel]) * opacity + 255 * (255 - opacity)) * 128 + 0x4000
                pixels[channel] = UInt8((mixed >> 8 + mixed) >> 15)
            }
            pixels[pixel + 3] = 255
        }
        return try PixelImage(width: width, height: height, rgba: pixels)
    }

    /// Scales the picture to the size to draw at.
    ///
    /// - Parameters:
    ///   - size: to draw at.
    ///   - covers: whether it is scaled to cover the size and cropped, equally on both sides, or stretched to it.
    func scaled(to size: PictureSize, covers: Bool) throws(ModditError) -> PixelImage {
        guard covers else { return try resized(to: size) }
        let whole = PictureSize(height: height, width: width).covering(size)
        let (top, left) = ((whole.height - size.height) / 2, (whole.width - size.width) / 2)
        let down = Double(height) / Double(whole.height)  // pixels of the picture for one of the result
        let right = Double(width) / Double(whole.width)
        let box = PixelBox(
            left: Float(Double(left) * right), top: Float(Double(top) * down),
            right: Float(Double(left + size.width) * right), bottom: Float(Double(top + size.height) * down))
        return try resized(to: size, box: box)
    }

    /// What a VAE takes: red, green and blue planes, -1 to 1, (3, height, width).
    var planes: [Float] {
        (0..<3).flatMap { channel in
            stride(from: channel, to: rgba.count, by: 4).map { Float(rgba[$0]) / 127.5 - 1 }
        }
    }

    /// Pastes what was drawn where a mask is true, in the tone of what is around and feathered.
    ///
    /// Every pixel outside the mask stays.
    ///
    /// Both pictures and the mask have the same size.
    func pasting(_ drawn: PixelImage, where mask: PixelMask) throws(ModditError) -> PixelImage {
        guard let window = mask.window(margin: Paste.ring) else { return self }
        let marked = mask.cropped(window)
        let ring = zip(marked.dilated(Paste.ring).pixels, marked.pixels).map { $0 && !$1 }
        let places = marked.pixels.indices.map { index in
            4
                * ((window.rows.lowerBound + index / marked.width) * width + window.columns.lowerBound + index
                    % marked.width)
        }
        let parts = Paste.feather(marked)
        var pixels = rgba
        for channel in 0..<3 {
            let differences = places.map { 2 * (Int(rgba[$0 + channel]) - Int(drawn.rgba[$0 + channel])) }
            let tone = Paste.median(zip(differences, ring).filter(\.1).map(\.0))
            for (index, place) in places.enumerated() where marked.pixels[index] {
                let change = parts[index] * (tone - differences[index])  // halves of levels, in parts
                let mixed = Int(rgba[place + channel]) + Paste.rounded(change)
                pixels[place + channel] = UInt8(clamping: mixed)
            }
        }
        return try PixelImage(width: width, height: height, rgba: pixels)
    }
}

extension PictureSize {
    /// The size to which a picture of this one is scaled so that it covers another one.
    func covering(_ size: PictureSize) -> PictureSize {
        let scale = max(Double(size.height) / Double(height), Double(size.width) / Double(width))
        func scaled(_ side: Int) -> Int { Int((Double(side) * scale).rounded(.toNearestOrEven)) }
        return PictureSize(height: max(size.height, scaled(height)), width: max(size.width, scaled(width)))
    }
}

extension PixelMask {
    /// Rows and columns of a part.
    fileprivate struct Window {
        let rows: Range<Int>
        let columns: Range<Int>
    }

    /// Bounds what is marked, and a margin around it; nil if nothing is.
    fileprivate func window(margin: Int) -> Window? {
        func bounds(_ places: [Int], _ count: Int) -> Range<Int>? {
            guard let first = places.min(), let last = places.max() else { return nil }
            return max(first - margin, 0)..<min(last + margin + 1, count)
        }
        let marked = pixels.indices.filter { pixels[$0] }
        guard let rows = bounds(marked.map { $0 / width }, height),
            let columns = bounds(marked.map { $0 % width }, width)
        else { return nil }
        return Window(rows: rows, columns: columns)
    }

    fileprivate func cropped(_ window: Window) -> PixelMask {
        PixelMask(
            width: window.columns.count, height: window.rows.count,
            window.rows.flatMap { row in window.columns.map { pixels[row * width + $0] } })
    }
}

/// How a drawn part fits in.
private enum Paste {
    /// Pixels around the mask, whose tone the drawn picture gets.
    static let ring = 4
    /// Levels, .15 of all: what differs by more is another thing, not another tone.
    static let tone = 38
    /// Pixels inside the mask, over which the image becomes the drawn picture.
    static let feather = 2
    /// That a pixel is mixed of.
    static let parts = feather + 1

    /// The median of numbers that are twice a difference of levels; 0 where none is a tone.
    static func median(_ doubled: [Int]) -> Int {
        let values = doubled.filter { abs($0) <= 2 * tone }.sorted()
        return values.isEmpty ? 0 : (values[(values.count - 1) / 2] + values[values.count / 2]) / 2
    }

    /// Counts the parts of each pixel that are the drawn picture's: fewer at the edge of a mask.
    ///
    /// Where a mask is too thin to have an inside all parts are, or a scratch could not be removed.
    static func feather(_ mask: PixelMask) -> [Int] {
        var counts = [Int](repeating: 1, count: mask.pixels.count)
        var edge = mask.inverted
        for _ in 0..<feather {
            edge = edge.dilated(1)
            for index in counts.indices where !edge.pixels[index] { counts[index] += 1 }
        }
        let inside = edge.inverted.dilated(2 * feather).pixels
        return counts.indices.map { inside[$0] ? counts[$0] : parts }
    }

    /// Levels of a change in halves of levels and parts, to the nearest, halves up.
    static func rounded(_ change: Int) -> Int {
        let (sum, unit) = (change + parts, 2 * parts)
        return sum >= 0 ? sum / unit : -((unit - 1 - sum) / unit)
    }
}
