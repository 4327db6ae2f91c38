import Foundation

/// What happens to a text before it is cut into words.
///
/// Port of huggingface/tokenizers, normalizers/: those that files of T5's kind have.
indirect enum Normalizer: Sendable {
    case sequence([Normalizer])
    case precompiled(PrecompiledCharsmap)
    case strip(left: Bool, right: Bool)
    case replace([Unicode.Scalar], with: [Unicode.Scalar])
    case replaceSpaces(with: [Unicode.Scalar])  // two or more
    case unicode(Form)
    case lowercase

    enum Form: String, Sendable, CaseIterable {
        case composed = "NFC"
        case decomposed = "NFD"
        case compatiblyComposed = "NFKC"
        case compatiblyDecomposed = "NFKD"
    }

    init(_ field: JSONField) throws(ModditError) {
        let type = try typeName(of: field)
        func read(_ names: [String]) throws(ModditError) -> [JSONField] {
            let fields = try field.object(["type"] + names)
            return names.compactMap { fields[$0] }
        }
        switch type {
        case "Sequence":
            var parts: [Normalizer] = []
            for part in try read(["normalizers"])[0].array() { parts.append(try Normalizer(part)) }
            self = .sequence(parts)
        case "Precompiled":
            self = .precompiled(try PrecompiledCharsmap(try read(["precompiled_charsmap"])[0]))
        case "Strip":
            let sides = try read(["strip_left", "strip_right"])
            self = .strip(left: try sides[0].bool(), right: try sides[1].bool())
        case "Replace":
            let parts = try read(["pattern", "content"])
            self = try Self.makeReplace(pattern: parts[0], content: try parts[1].string())
        case "Lowercase":
            _ = try read([])
            self = .lowercase
        default:
            guard let form = Form(rawValue: type) else { throw unsupported(field, type) }
            _ = try read([])
            self = .unicode(form)
        }
    }

    private static func makeReplace(pattern: JSONField, content: String) throws(ModditError) -> Normalizer {
        let replacement = Array(content.unicodeScalars)
        let fields = try pattern.object([], optional: ["String", "Regex"])
        if let text = try fields["String"]?.string(), fields.count == 1, !text.isEmpty {
            return .replace(Array(text.unicodeScalars), with: replacement)
        }
        guard let expression = try fields["Regex"]?.string(), fields.count == 1 else {
            throw pattern.format("has no pattern", want: "a 'String' or a 'Regex'")
        }
        guard expression == " {2,}" else { throw unsupported(pattern, expression) }
        return .replaceSpaces(with: replacement)
    }

    func apply(_ text: [Unicode.Scalar]) throws(ModditError) -> [Unicode.Scalar] {
        switch self {
        case .sequence(let parts):
            var text = text
            for part in parts { text = try part.apply(text) }
            return text
        case .precompiled(let map): return try map.normalize(text)
        case .strip(let left, let right): return Self.strip(text, left: left, right: right)
        case .replace(let pattern, let content): return Self.replace(pattern, with: content, in: text)
        case .replaceSpaces(let content): return Self.replaceSpaces(with: content, in: text)
        case .unicode(let form): return Array(form.apply(String(text)).unicodeScalars)
        case .lowercase: return text.flatMap { Array($0.properties.lowercaseMapping.unicodeScalars) }
        }
    }

    private static func strip(_ text: [Unicode.Scalar], left: Bool, right: Bool) -> [Unicode.Scalar] {
        var rest = text[...]
        if left { rest = rest.drop { $0.properties.isWhitespace } }
        while right, let last = rest.last, last.properties.isWhitespace { rest.removeLast() }
        return Array(rest)
    }

    private static func replace(
        _ pattern: [Unicode.Scalar], with content: [Unicode.Scalar], in text: [Unicode.Scalar]
    ) -> [Unicode.Scalar] {
        var result: [Unicode.Scalar] = []
        var index = 0
        while index < text.count {
            if text[index...].starts(with: pattern) {
                result += content
                index += pattern.count
            } else {
                result.append(text[index])
                index += 1
            }
        }
        return result
    }

    private static func replaceSpaces(with content: [Unicode.Scalar], in text: [Unicode.Scalar]) -> [Unicode.Scalar] {
        var result: [Unicode.Scalar] = []
        var rest = text[...]
        while let first = rest.first {
            let spaces = rest.prefix { $0 == " " }
            result += spaces.count > 1 ? content : [first]
            rest = rest.dropFirst(max(1, spaces.count))
        }
        return result
    }
}

extension Normalizer.Form {
    func apply(_ text: String) -> String {
        switch self {
        case .composed: text.precomposedStringWithCanonicalMapping
        case .decomposed: text.decomposedStringWithCanonicalMapping
        case .compatiblyComposed: text.precomposedStringWithCompatibilityMapping
        case .compatiblyDecomposed: text.decomposedStringWithCompatibilityMapping
        }
    }
}

/// Reads the "type" of a part of the file.
func typeName(of field: JSONField) throws(ModditError) -> String {
    guard let type = try field.object()["type"] else { throw field.format("has no type", want: "one") }
    return try type.string()
}

/// Makes the error for a part of the file that is not implemented.
func unsupported(_ field: JSONField, _ what: String) -> ModditError {
    .unsupported(field.message("is of kind \(what.quoted)", want: "a tokenizer of T5's kind"))
}
