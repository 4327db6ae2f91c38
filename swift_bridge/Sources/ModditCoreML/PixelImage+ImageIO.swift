import Foundation
import ModditCore

#if canImport(ImageIO)
import ImageIO
#endif

extension PixelImage {
    /// Reads the file of a picture as people see it: turned as its orientation says, with its opacity.
    ///
    /// Of an animation it is the first picture. Nobody has run this on a Mac yet.
    ///
    /// - Throws: `ModditError.missing` if there is no such file, `ModditError.format` if it is no picture that the system
    ///   reads, `ModditError.valueRange` if it is too large, `ModditError.unsupported` on a system without ImageIO.
    public init(contentsOf url: URL) throws(ModditError) {
        #if canImport(ImageIO)
        guard FileManager.default.fileExists(atPath: url.path) else {
            throw .missing("[image] \(url.path): no such file, want a picture")
        }
        let unreadable = ModditError.format(
            "[image] \(url.path): is no picture that this system reads; want PNG or JPEG")
        guard let source = CGImageSourceCreateWithURL(url as CFURL, nil),
            let properties = CGImageSourceCopyPropertiesAtIndex(source, 0, nil) as? [String: Any],
            let width = properties[kCGImagePropertyPixelWidth as String] as? Int,
            let height = properties[kCGImagePropertyPixelHeight as String] as? Int
        else { throw unreadable }
        guard max(width, height) <= Bounds.side, width * height <= Bounds.pixels else {
            throw .valueRange(
                "[image] \(url.path): has height \(height) and width \(width), want at most \(Bounds.pixels) pixels, and "
                    + "\(Bounds.side) a side; make it smaller")
        }
        guard let image = CGImageSourceCreateImageAtIndex(source, 0, nil) else { throw unreadable }
        let orientation = properties[kCGImagePropertyOrientation as String] as? Int
        self = try PixelImage(image).upright(from: orientation ?? 1)
        #else
        throw .unsupported(
            "[image] \(url.path): this system has no ImageIO to read pictures with; use macOS 15 or iOS 18")
        #endif
    }
}
