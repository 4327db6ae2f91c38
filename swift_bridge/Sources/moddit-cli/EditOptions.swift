import Foundation
import ModditCore
import ModditCoreML

/// What an edit starts from, and what of it is drawn anew.
struct EditOptions: Equatable {
    /// How a mask is given.
    enum MaskOption: Equatable {
        case alpha
        case box(x: Int, y: Int, width: Int, height: Int)
        case file(String)
    }

    static let all = [
        Option(name: "image", value: "FILE", help: "Start from this picture.  [default: from noise]"),
        Option(
            name: "mask", value: "FILE|box:X,Y,WIDTH,HEIGHT|alpha",
            help: "Draw only this part of the image anew: what is white or transparent in a picture of its size, a box "
                + "in its pixels, or what is transparent in itself.  [default: all of it]"),
        Option(
            name: "strength", value: "X",
            help: "Share of the steps that are taken, the last ones, up to 1.  [default: \(Edit.imageStrength), with "
                + "--mask \(Edit.maskStrength)]"),
    ]
    private static let box = "box:"

    let image: String
    let mask: MaskOption?
    let strength: Double?

    /// Reads --image, --mask and --strength; nil if nothing is edited.
    static func read(_ arguments: Arguments) throws(UsageError) -> EditOptions? {
        let (mask, strength) = (arguments.values["mask"], try arguments.number("strength"))
        guard let image = arguments.values["image"] else {
            for name in ["mask", "strength"] where arguments.values[name] != nil {
                throw UsageError(message: "option --\(name) goes with --image")
            }
            return nil
        }
        if let strength, strength == 0 || strength > 1 {
            throw UsageError(message: "option --strength = '\(strength)', want a number above 0 and at most 1")
        }
        return EditOptions(
            image: image, mask: try mask.map { text throws(UsageError) in try parse(text) }, strength: strength)
    }

    private static func parse(_ text: String) throws(UsageError) -> MaskOption {
        guard text.hasPrefix(box) else { return text == "alpha" ? .alpha : .file(text) }
        let parts = text.dropFirst(box.count).split(separator: ",", omittingEmptySubsequences: false)
        let numbers = parts.compactMap { Int($0) }
        guard parts.count == 4, numbers.count == 4 else {
            throw UsageError(
                message: "option --mask = '\(text)', want box:X,Y,WIDTH,HEIGHT in whole pixels from the image's left "
                    + "and top, such as box:16,8,32,24; a file of this name is written ./\(text)")
        }
        return .box(x: numbers[0], y: numbers[1], width: numbers[2], height: numbers[3])
    }

    /// Reads the files.
    func open() throws(ModditError) -> Edit {
        let picture = try PixelImage(contentsOf: URL(fileURLWithPath: image))
        let mask = try mask.map { mask throws(ModditError) in
            switch mask {
            case .alpha: try PixelMask(alphaOf: picture)
            case .box(let x, let y, let width, let height):
                try PixelMask(x: x, y: y, width: width, height: height, of: picture)
            case .file(let path): try PixelMask(PixelImage(contentsOf: URL(fileURLWithPath: path)))
            }
        }
        return try Edit(image: picture, mask: mask, strength: strength)
    }
}
