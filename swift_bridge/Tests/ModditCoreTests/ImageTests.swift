import Foundation
import Testing

@testable import ModditCore

struct GuidanceTests {
    @Test func equalsPython() throws {
        let items = try Golden.items("guidance.json", "guidance")
        #expect(items.count == 20)
        for item in items {
            let parts = try item.array()
            let guidance = try Guidance(scale: parts[0].number())
            let found = try guidance.combine(parts[2].floats, keeping: 16)
            #expect(try found == parts[3].floats)
        }
    }

    @Test func wrongSizes() throws {
        for count in [0, 1, 3, 5, 8] {
            #expect(throws: ModditError.self) {
                try Guidance(scale: 2).combine([Float](repeating: 0, count: count), keeping: 1)
            }
        }
        #expect(throws: ModditError.self) { try Guidance(scale: 2).combine([1, 2], keeping: .max) }
        #expect(throws: ModditError.self) { try Guidance(scale: .nan) }
    }
}

struct PixelImageTests {
    @Test func roundsAsPython() throws {
        // 0 lies between 127 and 128: halves go to the even one
        let planes: [Float] = [-1, 1, -7, 9, 0, -0.25] + [Float](repeating: 0.5, count: 6)
        let image = try PixelImage(planes: planes, height: 1, width: 4)
        #expect(image.rgba == [0, 128, 191, 255, 255, 96, 191, 255, 0, 191, 191, 255, 255, 191, 191, 255])
    }

    @Test func previewShowsThreeChannels() throws {
        let image = try PixelImage(previewOf: [-3, 0, 3, 9], channels: 4, height: 1, width: 1)
        #expect(image.rgba == [0, 128, 255, 255])
        let single = try PixelImage(previewOf: [3], channels: 1, height: 1, width: 1)
        #expect(single.rgba == [255, 255, 255, 255])
    }

    @Test func badInput() {
        #expect(throws: ModditError.self) { try PixelImage(planes: [0, 0], height: 1, width: 1) }
        #expect(throws: ModditError.self) { try PixelImage(planes: [], height: 0, width: 1) }
        #expect(throws: ModditError.self) { try PixelImage(planes: [], height: .max, width: .max) }
        #expect(throws: ModditError.self) { try PixelImage(planes: [0, .nan, 0], height: 1, width: 1) }
        #expect(throws: ModditError.self) { try PixelImage(previewOf: [], channels: .max, height: 9, width: 9) }
        #expect(throws: ModditError.self) { try PixelImage(previewOf: [1, 2], channels: 1, height: 1, width: 1) }
        for (width, height, count) in [(1, 1, 3), (2, 1, 4), (0, 1, 0), (.max, .max, 4)] {
            let bytes = [UInt8](repeating: 0, count: count)
            #expect(throws: ModditError.self) { try PixelImage(width: width, height: height, rgba: bytes) }
        }
    }
}

struct ResamplingTests {
    @Test func equalsPillow() throws {
        let items = try Golden.items("pictures.json", "resized")
        #expect(items.count == 9)
        for item in items {
            let image = try PixelImage.pattern(height: item["height"].integer(), width: item["width"].integer())
            let (wanted, box) = (try item["wanted"].integers, try item["box"].floats)
            let found = try image.resized(
                to: PictureSize(height: wanted[0], width: wanted[1]),
                box: box.isEmpty ? nil : PixelBox(left: box[0], top: box[1], right: box[2], bottom: box[3]))
            #expect(try found.digest == item["digest"].string())
        }
    }
}

extension PixelImage {
    /// The picture of scripts/golden_pictures.py.
    static func pattern(height: Int, width: Int, seed: Int = 0) throws -> PixelImage {
        var pixels: [UInt8] = []
        for y in 0..<height {
            for x in 0..<width {
                let value = 37 * x + 101 * y + 11 * x * y + 71 * seed
                pixels += (0..<3).map { UInt8((value + 53 * $0) % 256) } + [255]
            }
        }
        return try PixelImage(width: width, height: height, rgba: pixels)
    }
}

struct PNGTests {
    @Test func checksumsAreStandard() {
        #expect(PNG.crc32(Array("123456789".utf8)) == 0xCBF4_3926)
        #expect(PNG.adler32(Array("Wikipedia".utf8)) == 0x11E6_0398)
    }

    @Test func chunksAreInOrder() throws {
        let image = try PixelImage(planes: [1, -1, 0], height: 1, width: 1)
        let texts = [PNG.Text(keyword: "moddit", text: "{}"), PNG.Text(keyword: "parameters", text: "é")]
        let file = [UInt8](try PNG.encode(image, texts: texts))
        #expect(names(of: file) == ["IHDR", "tEXt", "iTXt", "IDAT", "IEND"])
    }

    /// Stored blocks hold at most 65,535 bytes.
    @Test(arguments: [0, 1, 65_535, 65_536, 200_000])
    func storedBlocks(count: Int) {
        let bytes = (0..<count).map { UInt8($0 % 251) }
        let stream = PNG.zlib(bytes)
        var found: [UInt8] = []
        var position = 2
        var isLast = false
        while !isLast {
            isLast = stream[position] == 1
            let size = Int(stream[position + 1]) | Int(stream[position + 2]) << 8
            found += stream[position + 5..<position + 5 + size]
            position += 5 + size
        }
        #expect(found == bytes)
        #expect(stream.count == position + 4)
    }

    @Test(arguments: ["", "two words", "é", String(repeating: "a", count: 80)])
    func badKeywords(keyword: String) throws {
        let image = try PixelImage(planes: [0, 0, 0], height: 1, width: 1)
        #expect(throws: ModditError.self) { try PNG.encode(image, texts: [PNG.Text(keyword: keyword, text: "")]) }
        #expect(throws: ModditError.self) { try PNG.encode(image, texts: [PNG.Text(keyword: "a", text: "\0")]) }
    }

    private func names(of file: [UInt8]) -> [String] {
        var names: [String] = []
        var position = 8
        while position < file.count {
            let size = file[position..<position + 4].reduce(0) { $0 << 8 | Int($1) }
            names.append(String(decoding: file[position + 4..<position + 8], as: UTF8.self))
            position += 12 + size
        }
        return names
    }
}
