import Foundation
import Testing

@testable import ModditCore

struct PixelMaskTests {
    @Test func scalingEqualsPython() throws {
        for item in try EditGolden.items() {
            let mask = try EditGolden.mask(item)
            for part in try item["scaled"].array().map({ try $0.array() }) {
                let size = try PictureSize(height: part[0].integer(), width: part[1].integer())
                let scaled = try mask.scaled(to: size, covers: part[2].bool())
                #expect(try EditGolden.digits(scaled.pixels) == part[3].string())
                #expect(try EditGolden.digits(scaled.latent(scale: 4)) == part[4].string())
            }
        }
    }

    @Test func whatIsCroppedAwayIsTold() throws {
        let mask = try PixelMask(width: 8, height: 2, pixels: (0..<16).map { $0 % 8 == 0 })
        let wanted =
            "[mask] all that it marks is cropped away at height 4 and width 4; want a size of the image's shape, or none"
        #expect(throws: ModditError.valueRange(wanted)) {
            try mask.scaled(to: PictureSize(height: 4, width: 4), covers: true)
        }
    }

    @Test func boxes() throws {
        let image = try PixelImage.pattern(height: 3, width: 4)
        let mask = try PixelMask(x: 1, y: 2, width: 3, height: 1, of: image)
        #expect(EditGolden.digits(mask.pixels) == "000000000111")
        for (x, y, width, height) in [(-1, 0, 2, 2), (1, 1, 4, 1), (1, 2, 1, 2), (0, 0, 0, 1), (4, 0, 1, 1)] {
            #expect(throws: ModditError.self) { try PixelMask(x: x, y: y, width: width, height: height, of: image) }
        }
        #expect(throws: ModditError.self) { try PixelMask(x: 0, y: 0, width: .max, height: 1, of: image) }
        #expect(throws: ModditError.self) { try PixelMask(width: 2, height: 2, pixels: [true]) }
        #expect(throws: ModditError.self) { try PixelMask(width: 0, height: 0, pixels: []) }
    }

    /// Whites, greys above half and what is transparent.
    @Test func picturesAsMasks() throws {
        func mask(_ rgba: [UInt8]) throws -> String {
            let picture = try PixelImage(width: rgba.count / 4, height: 1, rgba: rgba)
            return try EditGolden.digits(PixelMask(picture).pixels)
        }
        #expect(try mask([255, 255, 255, 255, 0, 0, 0, 255, 128, 128, 128, 255, 127, 127, 127, 255]) == "1010")
        #expect(try mask([0, 255, 0, 255, 255, 0, 0, 255, 0, 0, 255, 255]) == "100")
        #expect(try mask([255, 255, 255, 255, 0, 0, 0, 127, 0, 0, 0, 128]) == "010")
        let flat = "[mask] has no contrast, all its pixels are 200 of 255; want white on black"
        #expect(throws: ModditError.valueRange(flat)) { try mask([200, 200, 200, 255, 200, 200, 200, 255]) }
        let none =
            "[mask] marks nothing, the most that a pixel is white or transparent is 7 of 255, want more than 127 "
        #expect(throws: ModditError.valueRange(none + "where the image is drawn anew")) {
            try mask([0, 0, 0, 255, 7, 7, 7, 255])
        }
    }
}

struct PastingTests {
    @Test func equalsPython() throws {
        for item in try EditGolden.items() {
            let mask = try EditGolden.mask(item)
            let image = try PixelImage.pattern(height: mask.height, width: mask.width)
            let brighter = try PixelImage(
                width: image.width, height: image.height, rgba: image.rgba.map { min($0, 246) + 9 })
            let other = try PixelImage.pattern(height: mask.height, width: mask.width, seed: 1)
            for (drawn, wanted) in zip([brighter, other], try item["finished"].array()) {
                #expect(try image.pasting(drawn, where: mask).digest == wanted.string())
            }
            #expect(try [image.digest, mask.digest] == item["digests"].array().map { try $0.string() })
        }
    }

    @Test func nothingMarkedChangesNothing() throws {
        let image = try PixelImage.pattern(height: 3, width: 4)
        let mask = try PixelMask(width: 4, height: 3, pixels: Array(repeating: false, count: 12))
        #expect(try image.pasting(PixelImage.pattern(height: 3, width: 4, seed: 1), where: mask) == image)
    }

    @Test func coveringEqualsPillow() throws {
        for item in try Golden.items("pictures.json", "covered") {
            let (source, wanted) = (try item["source"].integers, try item["wanted"].integers)
            let found = try PixelImage.pattern(height: source[0], width: source[1])
                .scaled(to: PictureSize(height: wanted[0], width: wanted[1]), covers: true)
            #expect(try found.digest == item["digest"].string())
        }
    }

    /// Every grey of every opacity.
    @Test func onWhiteEqualsPillow() throws {
        var bytes: [UInt8] = []
        for index in 0..<65_536 {
            let grey = UInt8(index / 256)
            bytes += [grey, grey, grey, UInt8(index % 256)]
        }
        let image = try PixelImage(width: 256, height: 256, rgba: bytes).onWhite()
        #expect(try image.digest == Golden.read("pictures.json")["on_white"].string())
    }

    @Test func planesAreTheVAEs() throws {
        let image = try PixelImage(width: 2, height: 1, rgba: [0, 255, 51, 255, 102, 0, 255, 255])
        let (low, middle): (Float, Float) = (51 / 127.5 - 1, 102 / 127.5 - 1)
        #expect(image.planes == [-1, middle, 1, -1, low, 1])
    }
}

/// The edits of pictures.json.
enum EditGolden {
    static func items() throws -> [JSONField] {
        let items = try Golden.items("pictures.json", "edits")
        #expect(items.count == 6)
        return items
    }

    static func mask(_ item: JSONField) throws -> PixelMask {
        try PixelMask(
            width: item["width"].integer(), height: item["height"].integer(),
            pixels: item["mask"].string().map { $0 == "1" })
    }

    static func digits(_ pixels: [Bool]) -> String {
        pixels.map { $0 ? "1" : "0" }.joined()
    }
}
