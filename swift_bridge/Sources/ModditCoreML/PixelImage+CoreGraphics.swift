import Foundation
import ModditCore

#if canImport(CoreGraphics)
import CoreGraphics

extension PixelImage {
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
