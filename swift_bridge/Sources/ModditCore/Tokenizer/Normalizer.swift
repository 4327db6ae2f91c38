import Foundation

/// What happens to a text before it is cut into words.
///
/// Port of huggingface/tokenizers, normalizers/: those that files of T5's kind have.
struct Normalizer: Sendable {
    private let steps: [Step]

    init(_ field: JSONField) throws(ModditError) {
        var steps: [Step] = []
        for step in try readSteps(of: field, in: "normalizers") { steps.append(try Step(step)) }
        guard steps.count(where: \.isMap) <= 1 else {
            throw .unsupported(field.message("has several maps of characters", want: "one"))
        }
        self.steps = steps
    }

    func apply(_ text: [Unicode.Scalar]) throws(ModditError) -> [Unicode.Scalar] {
        var text = text
        for step in steps { text = try step.apply(text) }
        return text
    }
}

/// One step of a normalizer, none of which makes a text longer than by a known factor.
private enum Step: Sendable {
    case precompiled(PrecompiledCharsmap)
    case strip(left: Bool, right: Bool)
    case replace([Unicode.Scalar], with: [Unicode.Scalar])
    case replaceSpaces(with: [Unicode.Scalar])  // two or more
    case unicode(Form)
    case lowercase

    /// The one expression that files of T5's kind have.
    private static let spaces: ExactText = " {2,}"

    var isMap: Bool {
        if case .precompiled = self { true } else { false }
    }

    enum Form: String, Sendable {
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
        case "Precompiled":
            self = .precompiled(try PrecompiledCharsmap(try read(["precompiled_charsmap"])[0]))
        case "Strip":
            let sides = try read(["strip_left", "strip_right"])
            self = .strip(left: try sides[0].bool(), right: try sides[1].bool())
        case "Replace":
            let parts = try read(["pattern", "content"])
            self = try Self.makeReplace(pattern: parts[0], content: try parts[1].string(), at: field)
        case "Lowercase":
            _ = try read([])
            self = .lowercase
        default:
            // The sign of the kelvin equals a K, but for its code point.
            guard let form = Form(rawValue: type), ExactText(form.rawValue) == ExactText(type) else {
                throw unsupported(field, type)
            }
            _ = try read([])
            self = .unicode(form)
        }
    }

    private static func makeReplace(
        pattern: JSONField, content: String, at field: JSONField
    ) throws(ModditError) -> Step {
        let fields = try pattern.object()
        let replacement = Array(content.unicodeScalars)
        switch (fields.count, fields["String"]?.value, fields["Regex"]?.value) {
        case (1, .string(let text), nil) where !text.isEmpty && replacement.count <= text.unicodeScalars.count:
            return .replace(Array(text.unicodeScalars), with: replacement)
        case (1, nil, .string(let expression)) where ExactText(expression) == spaces && replacement.count <= 1:
            return .replaceSpaces(with: replacement)
        default:
            throw .unsupported(
                field.message(
                    "is Replace \(pattern.value.shown) by \(content.quoted)", want: "one that makes no text longer"))
        }
    }

    func apply(_ text: [Unicode.Scalar]) throws(ModditError) -> [Unicode.Scalar] {
        switch self {
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

extension Step.Form {
    func apply(_ text: String) -> String {
        switch self {
        case .composed: text.precomposedStringWithCanonicalMapping
        case .decomposed: text.decomposedStringWithCanonicalMapping
        case .compatiblyComposed: text.precomposedStringWithCompatibilityMapping
        case .compatiblyDecomposed: text.decomposedStringWithCompatibilityMapping
        }
    }
}

/// Reads a part of the file that is one step, or a sequence of some, which are no sequences themselves.
func readSteps(of field: JSONField, in name: String) throws(ModditError) -> [JSONField] {
    guard try typeName(of: field) == "Sequence" else { return [field] }
    let steps = try JSONObject(field, ["type", name])[name].array()
    guard steps.count <= Bounds.steps else {
        throw .unsupported(field.message("has \(steps.count) steps", want: "at most \(Bounds.steps)"))
    }
    return steps
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
