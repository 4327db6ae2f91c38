import Foundation

// Port of src/libImaging/Resample.c of Pillow 13: precompute_coeffs, normalize_coeffs_8bpc and ImagingResample of 8 bits.
// Deviations: LANCZOS alone, and of red, green and blue. Pillow's versions before always began with the rows, which moves
// a pixel by a few levels.

/// A part of a picture, pixels, whole ones or not.
struct PixelBox: Sendable, Hashable {
    let left: Float
    let top: Float
    let right: Float
    let bottom: Float
}

extension PixelImage {
    /// Scales the picture, or a part of it, as Pillow's `resize` does with `LANCZOS`; the result is opaque.
    ///
    /// - Throws: `ModditError.shape` for a size that no picture has.
    func resized(to size: PictureSize, box: PixelBox? = nil) throws(ModditError) -> PixelImage {
        let box = box ?? PixelBox(left: 0, top: 0, right: Float(width), bottom: Float(height))
        let beginsWithColumns = size.height < height && height - size.height > 2 * (width - size.width)
        var result = self
        for axis in beginsWithColumns ? [Axis.column, .row] : [.row, .column] {
            let (count, start, end, wanted) =
                axis == .row ? (width, box.left, box.right, size.width) : (height, box.top, box.bottom, size.height)
            guard wanted != count || start != 0 || end != Float(count) else { continue }
            result = try result.resampled(Lanczos.windows(of: count, start, end, wanted), axis)
        }
        return result
    }

    private enum Axis { case row, column }

    /// Replaces the pixels along one axis by weighted sums of them.
    private func resampled(_ windows: [Lanczos.Window], _ axis: Axis) throws(ModditError) -> PixelImage {
        let (columns, rows) = axis == .row ? (windows.count, height) : (width, windows.count)
        let step = axis == .row ? 4 : 4 * width
        var pixels = [UInt8](repeating: 255, count: 4 * rows * columns)
        for row in 0..<rows {
            for column in 0..<columns {
                let window = windows[axis == .row ? column : row]
                let (y, x) = axis == .row ? (row, window.start) : (window.start, column)
                let (source, target) = (4 * (y * width + x), 4 * (row * columns + column))
                for channel in 0..<3 {
                    var sum = Lanczos.half
                    for (index, weight) in window.weights.enumerated() {
                        sum += weight * Int(rgba[source + channel + index * step])
                    }
                    pixels[target + channel] = UInt8(clamping: sum >> Lanczos.bits)
                }
            }
        }
        return try PixelImage(width: columns, height: rows, rgba: pixels)
    }
}

/// The filter LANCZOS of width 3.
private enum Lanczos {
    /// What a pixel of the result is made of.
    struct Window {
        /// The first pixel.
        let start: Int
        /// Of it and its neighbours, in 2^-22.
        let weights: [Int]
    }

    /// Of a weight behind the point.
    static let bits = 22
    /// Half a level, so that a sum is rounded.
    static let half = 1 << (bits - 1)
    private static let width = 3.0

    /// Finds the windows that pixels of a result have in a line of `count`, from a place in it to another.
    static func windows(of count: Int, _ start: Float, _ end: Float, _ wanted: Int) -> [Window] {
        let scale = Double(end - start) / Double(wanted)
        let stretch = max(scale, 1)
        return (0..<wanted).map { index in
            let center = Double(start) + (Double(index) + 0.5) * scale
            let first = max(Int(center - width * stretch + 0.5), 0)
            let last = min(Int(center + width * stretch + 0.5), count)
            let values = (first..<last).map { value((Double($0) - center + 0.5) / stretch) }
            let sum = values.reduce(0, +)
            return Window(start: first, weights: values.map { fixed($0 / sum) })
        }
    }

    private static func value(_ x: Double) -> Double {
        -width <= x && x < width ? sinc(x) * sinc(x / width) : 0
    }

    private static func sinc(_ x: Double) -> Double {
        x == 0 ? 1 : sin(x * .pi) / (x * .pi)
    }

    private static func fixed(_ weight: Double) -> Int {
        Int((weight * Double(1 << bits)).rounded(.toNearestOrAwayFromZero))
    }
}
