import Foundation

/// The T5 tokenizer: reads `tokenizer.json` and gives the same token numbers as Hugging Face's `tokenizers`.
///
/// It knows what files of T5's kind have: a unigram vocabulary, the normalisers Precompiled, Sequence, Strip, Replace,
/// NFC, NFD, NFKC, NFKD and Lowercase, the cuts WhitespaceSplit and Metaspace, added tokens, and a template. Anything
/// else in the file is an error, never ignored, except the "decoder", which encoding does not need, and the lengths in
/// "truncation" and "padding", which the caller decides.
public struct UnigramTokenizer: Sendable {
    /// Token numbers of one text, filled up to a fixed length.
    public struct Padded: Sendable, Hashable {
        /// Token numbers, (length).
        public let ids: [Int32]
        /// 1 where a token is, 0 where the text was filled up, (length).
        public let mask: [Int32]
    }

    /// Number that fills texts up; nil if the file has none.
    public let padID: Int32?

    /// Tokens that are numbered from 0, with those that are added, that close a text and that fill it up.
    public let vocabularySize: Int

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
    /// - Throws: `ModditError.format` if it is damaged, `ModditError.unsupported` for a part that is not implemented.
    public init(_ data: Data, place: String = "tokenizer.json") throws(ModditError) {
        let root = JSONField(
            try JSON.parse(data, place: place, component: "tokenizer", most: Bounds.tokenizerBytes), place: place,
            component: "tokenizer")
        let names = [
            "version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer", "post_processor",
            "decoder", "model",
        ]
        let fields = try root.object(names)
        func part<Part>(
            _ name: String, _ read: (JSONField) throws(ModditError) -> Part
        ) throws(ModditError) -> Part? {
            guard let field = fields[name], !field.isNull else { return nil }
            return try read(field)
        }
        guard try part("version", { field throws(ModditError) in try field.string() }) == "1.0" else {
            throw .unsupported(root.message("has an unknown version", want: "'1.0'"))
        }
        guard let model = try part("model", UnigramModel.init) else { throw root.format("has no model", want: "one") }
        let normalizer = try part("normalizer", Normalizer.init)
        let readAdded = { (field) throws(ModditError) in try AddedTokens(field, model: model, normalizer: normalizer) }
        guard let added = try part("added_tokens", readAdded) else {
            throw root.format("has no added tokens", want: "a list")
        }
        self.normalizer = normalizer
        self.model = model
        self.added = added
        preTokenizer = try part("pre_tokenizer", PreTokenizer.init)
        template = try part("post_processor", Template.init) ?? Template()
        padID = try part("padding", Self.readPadding) ?? (added.ids["<pad>"] ?? model.id(of: "<pad>")).map { Int32($0) }
        _ = try part("truncation", Self.checkTruncation)
        let others = Array(added.ids.values) + template.before + template.after + (padID.map { [Int($0)] } ?? [])
        vocabularySize = max(model.count, (others.max() ?? -1) + 1)
    }

    /// Gives the token numbers of a text, the end token included.
    ///
    /// - Parameters:
    ///   - text: as it is; see `Caption` for prompts.
    ///   - maxLength: most tokens to give; the text is cut before the end token, which stays. By default all.
    /// - Throws: `ModditError.valueRange` if `maxLength` has no room for the end token.
    public func encode(_ text: String, maxLength: Int = .max) throws(ModditError) -> [Int32] {
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
                for word in preTokenizer?.apply(whole) ?? whole { ids += try model.encode(String(word.text)) }
            }
        }
        return (template.before + Array(ids.prefix(room)) + template.after).map { Int32(truncatingIfNeeded: $0) }
    }

    /// Gives the token numbers of a prompt: cleaned as `Caption` does, cut and filled up to a fixed length.
    ///
    /// - Throws: `ModditError.valueRange` for a prompt that is too long, or a length without room for the end token,
    ///   `ModditError.missing` if the file has no token that fills up.
    public func encodeCaption(_ prompt: String, length: Int) throws(ModditError) -> Padded {
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

    private static func readPadding(_ field: JSONField) throws(ModditError) -> Int32 {
        let names = ["strategy", "direction", "pad_to_multiple_of", "pad_id", "pad_type_id", "pad_token"]
        let id = try field.object(names)["pad_id"]?.integer(in: 0...Int(Int32.max)) ?? 0
        return Int32(id)
    }

    private static func checkTruncation(_ field: JSONField) throws(ModditError) {
        _ = try field.object(["max_length", "strategy", "stride"], optional: ["direction"])
    }
}

/// Tokens around every text.
private struct Template: Sendable {
    var before: [Int] = []
    var after: [Int] = []

    /// Number of tokens that it adds.
    var count: Int { before.count + after.count }

    init() {}

    init(_ field: JSONField) throws(ModditError) {
        let type = try typeName(of: field)
        guard type == "TemplateProcessing" else { throw unsupported(field, type) }
        let fields = try field.object(["type", "single", "pair", "special_tokens"])
        guard let single = fields["single"], let tokens = try fields["special_tokens"]?.object() else {
            throw field.format("has no template", want: "one")
        }
        var hasText = false
        for item in try single.array() {
            let parts = try item.object([], optional: ["Sequence", "SpecialToken"])
            if parts.count == 1, let sequence = parts["Sequence"], !hasText {
                guard try sequence.object(["id", "type_id"])["id"]?.string() == "A" else {
                    throw sequence.format("is another text than A", want: "A")
                }
                hasText = true
            } else if parts.count == 1, let token = parts["SpecialToken"] {
                let ids = try Self.readIDs(token, tokens)
                if hasText { after += ids } else { before += ids }
            } else {
                throw item.format("has fields \(parts.keys.sorted())", want: "one text A among special tokens")
            }
        }
        guard hasText else { throw single.format("has no text", want: "one") }
    }

    private static func readIDs(_ token: JSONField, _ tokens: [ExactText: JSONField]) throws(ModditError) -> [Int] {
        let name = try token.object(["id", "type_id"])["id"]?.string() ?? ""
        guard let fields = try tokens[ExactText(name)]?.object(["id", "ids", "tokens"]), let ids = fields["ids"] else {
            throw token.format("is \(name.quoted), which is not in special_tokens", want: "its numbers there")
        }
        var numbers: [Int] = []
        for id in try ids.array() { numbers.append(try id.integer(in: 0...Int(Int32.max))) }
        return numbers
    }
}
