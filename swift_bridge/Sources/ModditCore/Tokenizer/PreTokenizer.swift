/// How a text is cut into words.
///
/// Port of huggingface/tokenizers, pre_tokenizers/: those that files of T5's kind have.
indirect enum PreTokenizer: Sendable {
    case sequence([PreTokenizer])
    case whitespaceSplit
    case metaspace(Metaspace)

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

    init(_ field: JSONField) throws(ModditError) {
        switch try typeName(of: field) {
        case "Sequence":
            var parts: [PreTokenizer] = []
            for part in try field.object(["type", "pretokenizers"])["pretokenizers"]?.array() ?? [] {
                parts.append(try PreTokenizer(part))
            }
            self = .sequence(parts)
        case "WhitespaceSplit":
            _ = try field.object(["type"])
            self = .whitespaceSplit
        case "Metaspace":
            self = .metaspace(try Metaspace(field))
        case let type:
            throw unsupported(field, type)
        }
    }

    /// Cuts words into smaller ones; empty ones vanish.
    func apply(_ words: [Word]) -> [Word] {
        switch self {
        case .sequence(let parts): parts.reduce(words) { $1.apply($0) }
        case .whitespaceSplit: words.flatMap(Self.splitAtWhitespace)
        case .metaspace(let metaspace): words.flatMap(metaspace.apply)
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
        let addsSpace = try fields["add_prefix_space"]?.bool() ?? true
        if let scheme = fields["prepend_scheme"] {
            prepends = try choice(scheme)
            guard addsSpace || prepends == .never else {
                throw field.format("has an add_prefix_space that contradicts prepend_scheme", want: "one of them")
            }
        } else {
            prepends = addsSpace ? .always : .never
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
