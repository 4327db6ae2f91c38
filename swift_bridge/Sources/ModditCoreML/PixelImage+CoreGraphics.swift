import Foundation
import ModditCore

#if canImport(CoreGraphics)
import CoreGraphics

extension PixelImage {
    /// Takes the pixels of a picture.
    ///
    /// Red, green and blue are kept as they are stored, greys and inks become sRGB. Nobody has run this on a Mac yet.
    ///
    /// - Throws: `ModditError.format` if the system cannot draw it, `ModditError.shape` if it is too large.
    public init(_ image: CGImage) throws(ModditError) {
        let (width, height) = (image.width, image.height)
        var bytes = [UInt8](repeating: 0, count: 4 * width * height)
        let own = image.colorSpace?.model == .rgb ? image.colorSpace : nil
        let isDrawn = bytes.withUnsafeMutableBytes { buffer in
            guard let space = own ?? CGColorSpace(name: CGColorSpace.sRGB),
                let context = CGContext(
                    data: buffer.baseAddress, width: width, height: height, bitsPerComponent: 8, bytesPerRow: 4 * width,
                    space: space, bitmapInfo: CGImageAlphaInfo.premultipliedLast.rawValue)
            else { return false }
            context.draw(image, in: CGRect(x: 0, y: 0, width: width, height: height))
            return true
        }
        guard isDrawn else { throw .format("[image] this system cannot draw the picture; want red, green and blue") }
        for pixel in stride(from: 0, to: bytes.count, by: 4) {
            let opacity = Int(bytes[pixel + 3])
            guard (1..<255).contains(opacity) else { continue }
            for channel in pixel..<pixel + 3 {
                bytes[channel] = UInt8(min((Int(bytes[channel]) * 255 + opacity / 2) / opacity, 255))
            }
        }
        try self.init(width: width, height: height, rgba: bytes)
    }

    /// The picture for `Image(decorative:scale:)`, `UIImage(cgImage:)` or `NSImage(cgImage:size:)`.
    public var cgImage: CGImage? {
        guard let provider = CGDataProvider(data: Data(rgba) as CFData),
            let space = CGColorSpace(name: CGColorSpace.sRGB)
        else { return nil }
        return CGImage(
            width: width, height: height, bitsPerComponent: 8, bitsPerPixel: 32, bytesPerRow: 4 * width, space: space,
            bitmapInfo: CGBitmapInfo(rawValue: CGImageAlphaInfo.noneSkipLast.rawValue), provider: provider, decode: nil,
            shouldInterpolate: false, intent: .defaultIntent)
    }
}
#endif
