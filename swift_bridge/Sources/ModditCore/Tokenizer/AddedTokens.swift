/// Tokens beside the vocabulary that are found in the text before anything else, such as `</s>`.
///
/// Port of huggingface/tokenizers, tokenizer/added_vocabulary.rs.
struct AddedTokens: Sendable {
    /// A part of a text: a token, or what lies between tokens.
    enum Part: Sendable, Equatable {
        case token(Int)
        case text([Unicode.Scalar], isFirst: Bool)
    }

    private struct Token: Sendable {
        let id: Int
        let content: [Unicode.Scalar]
        let isSingleWord: Bool
        let takesSpaceBefore: Bool
        let takesSpaceAfter: Bool
    }

    private var literal: [Token] = []  // sought in the text as it is
    private var normalized: [Token] = []  // sought in the normalised text

    /// Numbers by content.
    private(set) var ids: [ExactText: Int] = [:]

    init(
        _ field: JSONField, model: UnigramModel, normalizer: Normalizer?, vocabularySize: Int
    ) throws(ModditError) {
        var next = model.count
        for item in try field.array() {
            let names = ["id", "content", "single_word", "lstrip", "rstrip", "normalized", "special"]
            let fields = try JSONObject(item, names)
            let content = try fields["content"].string()
            let wanted = model.id(of: content) ?? next
            let id = try fields["id"].token(below: vocabularySize)
            guard id == wanted else { throw try fields["id"].wrong(want: "\(wanted), the number of \(content.quoted)") }
            guard ids.updateValue(id, forKey: ExactText(content)) == nil else {
                throw try fields["content"].format("is \(content.quoted) for the second time", want: "another text")
            }
            next = max(next, id + 1)
            let isNormalized = try fields["normalized"].bool()
            let scalars = Array(content.unicodeScalars)
            let token = Token(
                id: id, content: isNormalized ? try normalizer?.apply(scalars) ?? scalars : scalars,
                isSingleWord: try fields["single_word"].bool(), takesSpaceBefore: try fields["lstrip"].bool(),
                takesSpaceAfter: try fields["rstrip"].bool())
            guard !token.content.isEmpty else {
                throw try fields["content"].format("is \(content.quoted), which is sought as nothing", want: "a text")
            }
            _ = try fields["special"].bool()
            if isNormalized { normalized.append(token) } else { literal.append(token) }
        }
    }

    /// Cuts a text at its tokens, and normalises what lies between them.
    func split(_ text: [Unicode.Scalar], normalizer: Normalizer?) throws(ModditError) -> [Part] {
        var result: [Part] = []
        for part in Self.split(text, isFirst: true, at: literal) {
            guard case .text(let text, let isFirst) = part else {
                result.append(part)
                continue
            }
            result += Self.split(try normalizer?.apply(text) ?? text, isFirst: isFirst, at: normalized)
        }
        return result
    }

    private static func split(_ text: [Unicode.Scalar], isFirst: Bool, at tokens: [Token]) -> [Part] {
        var parts: [Part] = []
        var done = 0
        var position = 0
        while position < text.count {
            guard let token = longest(tokens, in: text, at: position) else {
                position += 1
                continue
            }
            var (start, end) = (position, position + token.content.count)
            position = end
            if token.isSingleWord, isWord(text, start - 1) || isWord(text, end) { continue }
            while token.takesSpaceBefore, start > done, text[start - 1].properties.isWhitespace { start -= 1 }
            while token.takesSpaceAfter, end < text.count, text[end].properties.isWhitespace { end += 1 }
            if done < start { parts.append(.text(Array(text[done..<start]), isFirst: isFirst && done == 0)) }
            parts.append(.token(token.id))
            (done, position) = (end, max(position, end))
        }
        if done < text.count { parts.append(.text(Array(text[done...]), isFirst: isFirst && done == 0)) }
        return parts
    }

    private static func longest(_ tokens: [Token], in text: [Unicode.Scalar], at position: Int) -> Token? {
        var found: Token?
        for token in tokens where token.content.count > found?.content.count ?? 0 {
            if text[position...].starts(with: token.content) { found = token }
        }
        return found
    }

    /// Whether a character is part of a word, as `\w` of regular expressions has it.
    private static func isWord(_ text: [Unicode.Scalar], _ index: Int) -> Bool {
        guard text.indices.contains(index) else { return false }
        let properties = text[index].properties
        let isMarkOrDigit =
            switch properties.generalCategory {
            case .nonspacingMark, .spacingMark, .enclosingMark, .decimalNumber, .connectorPunctuation: true
            default: false
            }
        return isMarkOrDigit || properties.isAlphabetic || properties.isJoinControl
    }
}
