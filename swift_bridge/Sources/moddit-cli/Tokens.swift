import Foundation
import ModditCore

/// `moddit-cli tokens`: what a text encoder is given.
enum Tokens {
    static let command = Command(
        name: "tokens", summary: "Print the token numbers of a prompt.", argument: "TEXT",
        options: [
            .bundle, Option(name: "tokenizer", value: "FILE", help: "A tokenizer.json, instead of a bundle's."),
            Option(name: "length", value: "N", help: "Most tokens to print.  [default: the bundle's length]"), .json,
        ])

    static func run(_ arguments: Arguments) throws -> String {
        guard let text = arguments.positional.first else { throw UsageError(message: "no TEXT") }
        let length = try arguments.integer("length", in: 1...Bounds.textTokens)
        let (tokenizer, most) = try tokenizer(arguments)
        try Caption.check(text)
        let clean = Caption.clean(text)
        let ids = try tokenizer.encode(clean, maxLength: length ?? most ?? .max)
        guard arguments.flags.contains("json") else { return ids.map { "\($0)" }.joined(separator: " ") }
        return JSON.object(["text": .string(clean), "ids": .array(ids.map { .integer(Int($0)) })]).text
    }

    private static func tokenizer(_ arguments: Arguments) throws -> (UnigramTokenizer, Int?) {
        switch (arguments.values["bundle"], arguments.values["tokenizer"]) {
        case (.some, nil):
            let bundle = try CLI.bundle(arguments)
            return (try bundle.tokenizer(), bundle.manifest.spec.textTokens)
        case (nil, .some(let path)):
            guard let data = FileManager.default.contents(atPath: path) else {
                throw ModditError.missing("[tokenizer] \(path): no such file")
            }
            return (try UnigramTokenizer(data, place: path), nil)
        default: throw UsageError(message: "give one of --bundle and --tokenizer")
        }
    }
}
