/// How a text is cut into words.
///
/// Port of huggingface/tokenizers, pre_tokenizers/: those that files of T5's kind have.
struct PreTokenizer: Sendable {
    private enum Step: Sendable {
        case whitespaceSplit
        case metaspace(Metaspace)
    }

    struct Metaspace: Sendable {
        let replacement: Unicode.Scalar
        let prepends: Scheme
        let isSplit: Bool
    }

    enum Scheme: String, Sendable, CaseIterable {
        case always, never, first
    }

    /// A part of a text, and whether it begins where the text does.
    struct Word: Sendable, Equatable {
        var text: [Unicode.Scalar]
        var isFirst: Bool
    }

    private let steps: [Step]

    init(_ field: JSONField) throws(ModditError) {
        var steps: [Step] = []
        for step in try readSteps(of: field, in: "pretokenizers") { steps.append(try Self.readStep(step)) }
        self.steps = steps
    }

    /// Cuts words into smaller ones; empty ones vanish.
    func apply(_ words: [Word]) -> [Word] {
        steps.reduce(words) { words, step in
            switch step {
            case .whitespaceSplit: words.flatMap(Self.splitAtWhitespace)
            case .metaspace(let metaspace): words.flatMap(metaspace.apply)
            }
        }
    }

    private static func readStep(_ field: JSONField) throws(ModditError) -> Step {
        switch try typeName(of: field) {
        case "WhitespaceSplit":
            _ = try field.object(["type"])
            return .whitespaceSplit
        case "Metaspace":
            return .metaspace(try Metaspace(field))
        case let type:
            throw unsupported(field, type)
        }
    }

    private static func splitAtWhitespace(_ word: Word) -> [Word] {
        let parts = word.text.split { $0.properties.isWhitespace }
        return parts.map { Word(text: Array($0), isFirst: word.isFirst && $0.startIndex == 0) }
    }
}

extension PreTokenizer.Metaspace {
    /// Reads also the older form of the file, with "add_prefix_space" and "str_rep".
    init(_ field: JSONField) throws(ModditError) {
        let optional = ["prepend_scheme", "split", "add_prefix_space", "str_rep"]
        let fields = try field.object(["type", "replacement"], optional: optional)
        let text = try fields["replacement"]?.string() ?? ""
        guard let scalar = text.unicodeScalars.first, text.unicodeScalars.count == 1 else {
            throw field.format("has the replacement \(text.quoted)", want: "one character")
        }
        replacement = scalar
        isSplit = try fields["split"]?.bool() ?? true
        prepends = try fields["prepend_scheme"].map { field throws(ModditError) in try choice(field) } ?? .always
        _ = try fields["str_rep"]?.string()
        guard try fields["add_prefix_space"]?.bool() ?? true || prepends == .never else {
            throw field.format("has an add_prefix_space that contradicts prepend_scheme", want: "one of them")
        }
    }

    /// Marks spaces, and the beginning of the word, and cuts before every mark.
    func apply(_ word: PreTokenizer.Word) -> [PreTokenizer.Word] {
        var text = word.text.map { $0 == " " ? replacement : $0 }
        let isMarked = prepends == .always || prepends == .first && word.isFirst
        if isMarked, text.first != replacement { text.insert(replacement, at: 0) }
        guard isSplit else { return [PreTokenizer.Word(text: text, isFirst: word.isFirst)] }
        let cuts = [0] + text.indices.filter { $0 > 0 && text[$0] == replacement } + [text.count]
        return zip(cuts, cuts.dropFirst()).filter { $0 < $1 }.map { start, end in
            PreTokenizer.Word(text: Array(text[start..<end]), isFirst: word.isFirst && start == 0)
        }
    }
}
