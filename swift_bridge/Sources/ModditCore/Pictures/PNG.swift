import Foundation

/// Writes PNG files with texts that tell how the picture was made.
///
/// Source: PNG (Portable Network Graphics) Specification, third edition; RFC 1950 (zlib), RFC 1951 (deflate).
enum PNG {
    /// A text of a picture.
    struct Text: Sendable, Hashable {
        /// Its name, 1 to 79 letters, digits or other visible characters of ASCII.
        let keyword: String
        /// What it says.
        let text: String

        /// Makes a text.
        init(keyword: String, text: String) {
            self.keyword = keyword
            self.text = text
        }
    }

    /// Writes a picture without opacity, 3 bytes a pixel.
    ///
    /// The same picture and texts give the same bytes everywhere. The pixels are not compressed, so that a file takes 3
    /// bytes a pixel; a text of ASCII becomes a `tEXt` chunk, another an `iTXt` one, as the Python runtimes write them.
    ///
    /// - Throws: `ModditError.valueRange` for a keyword that PNG does not allow, or a zero character in a text.
    static func encode(_ image: PixelImage, texts: [Text] = []) throws(ModditError) -> Data {
        var file: [UInt8] = [0x89, 0x50, 0x4E, 0x47, 0x0D, 0x0A, 0x1A, 0x0A]
        let header = bigEndian(UInt32(image.width)) + bigEndian(UInt32(image.height))
        file += chunk("IHDR", header + [8, 2, 0, 0, 0])  // 8 bits, RGB, not interlaced
        for text in texts { file += try chunk(for: text) }
        file += chunk("IDAT", zlib(scanlines(of: image)))
        file += chunk("IEND", [])
        return Data(file)
    }

    private static func chunk(for text: Text) throws(ModditError) -> [UInt8] {
        let keyword = Array(text.keyword.utf8)
        let isAllowed = keyword.allSatisfy { (0x21...0x7E).contains($0) } && (1...79).contains(keyword.count)
        guard isAllowed, !text.text.utf8.contains(0) else {
            throw .valueRange(
                "[png] cannot store text '\(text.keyword)', want a keyword of 1...79 visible ASCII characters "
                    + "and a text without zero characters")
        }
        let isPlain = text.text.utf8.allSatisfy { $0 < 0x80 }
        // iTXt: not compressed, no language, no translated keyword
        let separator: [UInt8] = isPlain ? [0] : [0, 0, 0, 0, 0]
        return chunk(isPlain ? "tEXt" : "iTXt", keyword + separator + Array(text.text.utf8))
    }

    private static func scanlines(of image: PixelImage) -> [UInt8] {
        var bytes: [UInt8] = []
        bytes.reserveCapacity(image.height * (3 * image.width + 1))
        for row in 0..<image.height {
            bytes.append(0)  // no filter
            for pixel in row * image.width..<(row + 1) * image.width {
                bytes += image.rgba[4 * pixel..<4 * pixel + 3]
            }
        }
        return bytes
    }

    private static func chunk(_ type: StaticString, _ data: [UInt8]) -> [UInt8] {
        let content = Array(String(describing: type).utf8) + data
        return bigEndian(UInt32(data.count)) + content + bigEndian(crc32(content))
    }

    private static func bigEndian(_ value: UInt32) -> [UInt8] {
        [UInt8(value >> 24), UInt8(value >> 16 & 0xFF), UInt8(value >> 8 & 0xFF), UInt8(value & 0xFF)]
    }

    /// Wraps bytes in a zlib stream of stored blocks.
    static func zlib(_ bytes: [UInt8]) -> [UInt8] {
        let most = 0xFFFF
        var stream: [UInt8] = [0x78, 0x01]
        var start = 0
        repeat {
            let end = min(start + most, bytes.count)
            let size = UInt16(end - start)
            let isLast: UInt8 = end == bytes.count ? 1 : 0
            stream += [isLast, UInt8(size & 0xFF), UInt8(size >> 8), UInt8(~size & 0xFF), UInt8(~size >> 8)]
            stream += bytes[start..<end]
            start = end
        } while start < bytes.count
        return stream + bigEndian(adler32(bytes))
    }

    /// Checksum of a zlib stream.
    static func adler32(_ bytes: [UInt8]) -> UInt32 {
        var (a, b): (UInt32, UInt32) = (1, 0)
        for byte in bytes {
            a = (a + UInt32(byte)) % 65521
            b = (b + a) % 65521
        }
        return b << 16 | a
    }

    /// Checksum of a chunk.
    static func crc32(_ bytes: [UInt8]) -> UInt32 {
        ~bytes.reduce(~UInt32(0)) { crcTable[Int(($0 ^ UInt32($1)) & 0xFF)] ^ ($0 >> 8) }
    }

    private static let crcTable: [UInt32] = (0..<256).map { index in
        (0..<8).reduce(UInt32(index)) { value, _ in value & 1 == 1 ? 0xEDB8_8320 ^ (value >> 1) : value >> 1 }
    }
}
