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
        let half = try PixelImage(width: 2, height: 1, rgba: [255, 255, 255, 255, 255, 255, 255, 0])
        #expect(try PixelMask(alphaOf: half).pixels == [false, true])
        #expect(throws: ModditError.self) { try PixelMask(alphaOf: PixelImage.pattern(height: 2, width: 2)) }
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

    @Test func orientationsArePillows() throws {
        let image = try PixelImage.pattern(height: 3, width: 5)
        for (index, digest) in try Golden.items("pictures.json", "upright").enumerated() {
            #expect(try image.upright(from: index + 1).digest == digest.string())
        }
        #expect(try image.upright(from: 0) == image)
    }

    @Test func planesAreTheVAEs() throws {
        let image = try PixelImage(width: 2, height: 1, rgba: [0, 255, 51, 255, 102, 0, 255, 255])
        let (low, middle): (Float, Float) = (51 / 127.5 - 1, 102 / 127.5 - 1)
        #expect(image.planes == [-1, middle, 1, -1, low, 1])
    }
}

struct ScaledEditTests {
    private let sizes = [(32, 32), (32, 64), (64, 32)].map { PictureSize(height: $0.0, width: $0.1) }

    /// Without a size, the one nearest to the image's shape; by more than half a patch the image is cropped, but not
    /// under a mask.
    @Test func theNearestShapeIsDrawn() throws {
        func scaled(
            _ height: Int, _ width: Int, _ wanted: PictureSize? = nil, isMasked: Bool = false
        ) throws -> ScaledEdit {
            let image = try PixelImage.pattern(height: height, width: width)
            let mask = try isMasked ? PixelMask(x: width / 2, y: height / 2, width: 2, height: 1, of: image) : nil
            return try ScaledEdit(Edit(image: image, mask: mask), wanted: wanted, sizes: sizes, unit: 8)
        }
        #expect(try scaled(30, 33).size == sizes[0])
        #expect(try scaled(10, 33).size == sizes[1])
        #expect(try scaled(40, 20).size == sizes[2])
        #expect(try scaled(10, 33, sizes[2]).size == sizes[2])
        let stretched = try PixelImage.pattern(height: 32, width: 36).resized(to: sizes[0])
        #expect(try scaled(32, 36).start == stretched)
        let cropped = try PixelImage.pattern(height: 32, width: 37).scaled(to: sizes[0], covers: true)
        #expect(try scaled(32, 37).start == cropped)
        #expect(
            try scaled(32, 37, isMasked: true).start == PixelImage.pattern(height: 32, width: 37).resized(to: sizes[0]))
        let drawn = try PixelImage.pattern(height: 32, width: 32, seed: 1)
        let whole = try scaled(20, 22, isMasked: true).finish(drawn)
        #expect(whole.height == 20 && whole.width == 22)
        let part = try scaled(20, 22, sizes[0], isMasked: true).finish(drawn)
        #expect(part.height == 32 && part.width == 32)
        #expect(try scaled(20, 22).finish(drawn) == drawn)
    }

    @Test func outsideAMaskNothingChanges() throws {
        let image = try PixelImage.pattern(height: 41, width: 53)
        let mask = try PixelMask(x: 7, y: 9, width: 20, height: 13, of: image)
        let edit = try ScaledEdit(Edit(image: image, mask: mask), wanted: nil, sizes: sizes, unit: 8)
        let result = try edit.finish(PixelImage.pattern(height: 32, width: 32, seed: 1))
        for (index, isMarked) in mask.pixels.enumerated() where !isMarked {
            #expect(result.rgba[4 * index..<4 * index + 4] == image.rgba[4 * index..<4 * index + 4])
        }
        #expect(result != image)
    }

    @Test func badMasks() throws {
        let image = try PixelImage.pattern(height: 2, width: 3)
        func mask(_ width: Int, _ pixels: [Bool]) throws -> Edit {
            try Edit(image: image, mask: PixelMask(width: width, height: pixels.count / width, pixels: pixels))
        }
        let other = "[mask] has height 3 and width 2, want those of the image, 2 and 3"
        #expect(throws: ModditError.shape(other)) { try mask(2, [true, false, true, false, true, false]) }
        let none = "[mask] marks nothing, want true where the image is drawn anew"
        #expect(throws: ModditError.valueRange(none)) { try mask(3, Array(repeating: false, count: 6)) }
        let all = "[mask] marks all of the image; leave the mask out to draw all of it from the image, or the image too"
        #expect(throws: ModditError.valueRange(all)) { try mask(3, Array(repeating: true, count: 6)) }
    }

    @Test func transparentImagesAreOnWhite() throws {
        let image = try PixelImage(width: 1, height: 1, rgba: [0, 0, 0, 0])
        #expect(try Edit(image: image).image.rgba == [255, 255, 255, 255])
    }

    @Test func samplesOfMoments() throws {
        let vae = try Manifest(TestBundle.manifest("routed")).spec.vae
        let found = try vae.sample([1, -2, 3, 0, 1_000, -1_000], noise: [0.5, 0.25, 1])
        let wanted = [(1 + 0.5), (-2 + 0.25 * exp(10.0)), (3 + exp(-15.0))].map { Float($0 * 0.18215) }
        #expect(zip(found, wanted).allSatisfy { abs($0 - $1) <= 1e-6 * max(1, abs($1)) })
        #expect(throws: ModditError.self) { try vae.sample([1, 2, 3], noise: [1]) }
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

    /// The edit of a run of pipelines.json.
    static func edit(_ item: JSONField) throws -> Edit {
        let image = try PixelImage.pattern(height: item["height"].integer(), width: item["width"].integer())
        let marked = (0..<image.width * image.height).map { (2 * ($0 / image.width) + $0 % image.width) % 23 < 9 }
        let mask = try PixelMask(width: image.width, height: image.height, pixels: marked)
        let strength = try item["strength"]
        return try Edit(
            image: image, mask: item["is_masked"].bool() ? mask : nil,
            strength: strength.value == .null ? nil : strength.number())
    }

    static func digits(_ pixels: [Bool]) -> String {
        pixels.map { $0 ? "1" : "0" }.joined()
    }
}
