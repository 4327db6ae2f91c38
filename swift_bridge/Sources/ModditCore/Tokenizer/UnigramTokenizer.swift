import Foundation

/// The T5 tokenizer: reads `tokenizer.json` and gives the same token numbers as Hugging Face's `tokenizers`.
///
/// It knows what files of T5's kind have: a unigram vocabulary, the normalisers Precompiled, Sequence, Strip, Replace,
/// NFC, NFD, NFKC, NFKD and Lowercase, the cuts WhitespaceSplit and Metaspace, added tokens, and a template. Anything
/// else in the file is an error, never ignored, except the "decoder" and the template's "pair", which encoding does not
/// need, and the lengths in "truncation" and "padding", which the caller decides.
package struct UnigramTokenizer: Sendable {
    /// Token numbers of one text, filled up to a fixed length.
    struct Padded: Sendable, Hashable {
        /// Token numbers, (length).
        let ids: [Int32]
        /// 1 where a token is, 0 where the text was filled up, (length).
        let mask: [Int32]
    }

    /// Number that fills texts up; nil if the file has none.
    let padID: Int32?

    private let normalizer: Normalizer?
    private let preTokenizer: PreTokenizer?
    private let model: UnigramModel
    private let added: AddedTokens
    private let template: Template

    /// Reads `tokenizer.json`.
    ///
    /// - Parameters:
    ///   - data: its bytes.
    ///   - place: its name, for messages.
    ///   - vocabularySize: of the text encoder; every number of a token is below.
    /// - Throws: `ModditError.format` if it is damaged, `ModditError.unsupported` for a part that is not implemented,
    ///   `ModditError.shape` for a number that the text encoder does not know.
    package init(
        _ data: Data, place: String = "tokenizer.json", vocabularySize: Int = Bounds.vocabulary
    ) throws(ModditError) {
        let root = JSONField(
            try JSON.parse(data, place: place, component: "tokenizer", most: Bounds.tokenizerBytes), place: place,
            component: "tokenizer")
        let names = [
            "version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer", "post_processor",
            "decoder", "model",
        ]
        let fields = try JSONObject(root, names)
        let version = try fields["version"].string()
        guard version == "1.0" else {
            throw .unsupported(try fields["version"].message("is \(version.quoted)", want: "'1.0'"))
        }
        model = try UnigramModel(fields["model"], vocabularySize: vocabularySize)
        normalizer = try fields.optional("normalizer", Normalizer.init)
        added = try AddedTokens(
            fields["added_tokens"], model: model, normalizer: normalizer, vocabularySize: vocabularySize)
        preTokenizer = try fields.optional("pre_tokenizer", PreTokenizer.init)
        template = try Template(fields["post_processor"], vocabularySize: vocabularySize)
        let filling = try fields.optional("padding") { field throws(ModditError) in
            try Self.readPadding(field, vocabularySize: vocabularySize)
        }
        padID = (filling ?? added.ids["<pad>"] ?? model.id(of: "<pad>")).map { Int32($0) }
        _ = try fields.optional("truncation", Self.checkTruncation)
    }

    /// Gives the token numbers of a text, the end token included.
    ///
    /// - Parameters:
    ///   - text: as it is; see `Caption` for prompts.
    ///   - maxLength: most tokens to give; the text is cut before the end token, which stays. By default all.
    /// - Throws: `ModditError.valueRange` if `maxLength` has no room for the end token.
    package func encode(_ text: String, maxLength: Int = .max) throws(ModditError) -> [Int32] {
        guard maxLength >= template.count else {
            throw .valueRange("[tokenizer] length out of range, got \(maxLength), want at least \(template.count)")
        }
        let room = maxLength - template.count
        var ids: [Int] = []
        for part in try added.split(Array(text.unicodeScalars), normalizer: normalizer) {
            switch part {
            case .token(let id): ids.append(id)
            case .text(let text, let isFirst):
                let whole = [PreTokenizer.Word(text: text, isFirst: isFirst)].filter { !$0.text.isEmpty }
                for word in preTokenizer?.apply(whole) ?? whole { ids += model.encode(String(word.text)) }
            }
        }
        return (template.before + Array(ids.prefix(room)) + template.after).map { Int32(truncatingIfNeeded: $0) }
    }

    /// Gives the token numbers of a prompt: cleaned as `Caption` does, cut and filled up to a fixed length.
    ///
    /// - Throws: `ModditError.valueRange` for a prompt that is too long, or a length without room for the end token,
    ///   `ModditError.missing` if the file has no token that fills up.
    func encodeCaption(_ prompt: String, length: Int) throws(ModditError) -> Padded {
        guard length <= Bounds.textTokens else {
            throw .valueRange("[tokenizer] length out of range, got \(length), want at most \(Bounds.textTokens)")
        }
        try Caption.check(prompt)
        let ids = try encode(Caption.clean(prompt), maxLength: length)
        guard let padID else {
            throw .missing("[tokenizer] the tokenizer has no <pad> token; convert the checkpoint again")
        }
        let rest = length - ids.count
        return Padded(
            ids: ids + [Int32](repeating: padID, count: rest),
            mask: [Int32](repeating: 1, count: ids.count) + [Int32](repeating: 0, count: rest))
    }

    private static func readPadding(_ field: JSONField, vocabularySize: Int) throws(ModditError) -> Int {
        let names = ["strategy", "direction", "pad_to_multiple_of", "pad_id", "pad_type_id", "pad_token"]
        return try JSONObject(field, names)["pad_id"].token(below: vocabularySize)
    }

    private static func checkTruncation(_ field: JSONField) throws(ModditError) {
        _ = try field.object(["max_length", "strategy", "stride"], optional: ["direction"])
    }
}

/// What is put around every text: one token.
private struct Template: Sendable {
    private(set) var before: [Int] = []
    private(set) var after: [Int] = []

    /// Number of tokens that it adds.
    var count: Int { before.count + after.count }

    init(_ field: JSONField, vocabularySize: Int) throws(ModditError) {
        let type = try typeName(of: field)
        guard type == "TemplateProcessing" else { throw unsupported(field, type) }
        let fields = try JSONObject(field, ["type", "single", "pair", "special_tokens"])
        var tokens: [ExactText: [Int]] = [:]
        for (name, token) in try fields["special_tokens"].object() {
            tokens[name] = try Self.readIDs(token, vocabularySize: vocabularySize)
        }
        var hasText = false
        for item in try fields["single"].array() {
            let (kind, name) = try Self.readPart(item)
            if kind == "Sequence", name == "A", !hasText {
                hasText = true
            } else if kind == "SpecialToken", let ids = tokens[name] {
                if hasText { after += ids } else { before += ids }
            } else {
                throw item.wrong(want: "the text A, once, or one of post_processor.special_tokens")
            }
        }
        guard hasText, count == 1 else {
            let found = "has \(hasText ? "the" : "no") text A and \(count) tokens"
            throw try fields["single"].format(found, want: "the text and one end token")
        }
    }

    /// Reads a special token's numbers.
    private static func readIDs(_ field: JSONField, vocabularySize: Int) throws(ModditError) -> [Int] {
        let fields = try JSONObject(field, ["id", "ids", "tokens"])
        _ = try fields["id"].string()
        for text in try fields["tokens"].array() { _ = try text.string() }
        var ids: [Int] = []
        for id in try fields["ids"].array() { ids.append(try id.token(below: vocabularySize)) }
        return ids
    }

    /// Reads of which kind a part is, and its name.
    private static func readPart(_ field: JSONField) throws(ModditError) -> (kind: String, name: ExactText) {
        let parts = try field.object([], optional: ["Sequence", "SpecialToken"])
        guard parts.count == 1, let (kind, part) = parts.first else {
            throw field.wrong(want: "a Sequence or a SpecialToken")
        }
        let fields = try JSONObject(part, ["id", "type_id"])
        _ = try fields["type_id"].integer(in: 0...Int(UInt32.max))
        return (kind, ExactText(try fields["id"].string()))
    }
}

extension JSONField {
    /// Reads the number of a token that the text encoder knows.
    func token(below count: Int) throws(ModditError) -> Int {
        let number = try integer(in: 0...Int.max)
        guard number < count else {
            throw .shape(message("is \(number)", want: "a number below the text encoder's vocab_size, \(count)"))
        }
        return number
    }
}
