import Foundation
import Testing

@testable import ModditCore

/// What every reader of our records refuses and accepts, in tests/shared/refusals.json, which Python's tests run too.
struct RefusalTests {
    /// Bases that Swift reads.
    static let readers: [String: @Sendable (SharedTable.Case) throws(ModditError) -> Void] = [
        "manifest-mlx": readManifest, "manifest-coreml": readManifest, "manifest-labels": readManifest,
        "plan": readPlan, "tokenizer": readTokenizer,
    ]
    /// Bases that it does not: only the converter reads the configurations of diffusers and transformers, and only the
    /// Python runtime repeats a picture by the settings in its file.
    static let notRead: Set = ["transformer", "dit", "text_encoder", "vae", "scheduler", "picture"]

    static let file = "folder/file.json"

    @Test(arguments: try SharedTable.cases(of: readers.keys))
    func verdictIsPythons(_ item: SharedTable.Case) throws {
        let read = try #require(Self.readers[item.base])
        do throws(ModditError) {
            try read(item)
            #expect(item.isAccepted)
        } catch {
            #expect(!item.isAccepted, "\(error.message)")
            #expect(error.message.contains(Self.file))
            #expect(error.message.contains(item.field), "\(error.message)")
            #expect(error.message.unicodeScalars.allSatisfy(Self.isVisible), "\(error.message)")
        }
    }

    /// A new base has to be decided on.
    @Test func everyBaseIsReadOrNot() throws {
        let bases = try SharedTable.read()["bases"].object().keys.map(\.text)
        #expect(Set(bases) == Self.notRead.union(Self.readers.keys))
        #expect(Self.notRead.isDisjoint(with: Self.readers.keys))
    }

    @Sendable private static func readManifest(_ item: SharedTable.Case) throws(ModditError) {
        _ = try Manifest(item.content, place: file)
    }

    @Sendable private static func readPlan(_ item: SharedTable.Case) throws(ModditError) {
        let value = try JSON.parse(item.content, place: file, component: "routing")
        _ = try RoutingPlan(JSONField(value, place: file, component: "routing"))
    }

    @Sendable private static func readTokenizer(_ item: SharedTable.Case) throws(ModditError) {
        let settings = try JSONObject(item.settings, ["vocab_size", "max_length", "prompt"])
        let tokenizer = try UnigramTokenizer(
            item.content, place: file, vocabularySize: settings["vocab_size"].integer())
        _ = try tokenizer.encode(
            Caption.clean(settings["prompt"].string()), maxLength: settings["max_length"].integer())
    }

    /// Whether a terminal shows a character, and nothing else: no control characters, line ends or marks of direction.
    private static func isVisible(_ scalar: Unicode.Scalar) -> Bool {
        let hidden: [Unicode.GeneralCategory] = [
            .control, .format, .privateUse, .unassigned, .lineSeparator, .paragraphSeparator,
        ]
        return !hidden.contains(scalar.properties.generalCategory)
    }
}

/// The table, in the repository that this package is a folder of.
enum SharedTable {
    /// A file, and what a reader has to say to it.
    struct Case: Sendable, CustomTestStringConvertible {
        let name: String
        let base: String
        let content: Data
        let settings: JSONField  // what a tokenizer is read with
        let isAccepted: Bool
        let field: String

        var testDescription: String { name.printable }
    }

    static func read() throws -> JSONField {
        let folders = URL(fileURLWithPath: #filePath).pathComponents.dropLast(4)
        let file = folders.dropFirst().reduce(URL(fileURLWithPath: "/")) { $0.appendingPathComponent($1) }
            .appendingPathComponent("tests/shared/refusals.json")
        let value = try JSON.parse(Data(contentsOf: file), place: file.path, component: "test")
        return JSONField(value, place: file.path, component: "test")
    }

    /// The cases of some bases.
    static func cases(of names: some Collection<String>) throws -> [Case] {
        let table = try read()
        return try table["cases"].array().compactMap { item in
            let base = try item["base"].string()
            guard names.contains(base) else { return nil }
            return try Case(
                name: item["name"].string(), base: base, content: content(item, of: table["bases"][base].value),
                settings: table["read_with"], isAccepted: item["verdict"].string() == "accept",
                field: item["field"].string())
        }
    }

    private static func content(_ item: JSONField, of base: JSON) throws -> Data {
        let fields = try item.object()
        if let bytes = fields["bytes"] { return try fromHexadecimal(bytes.string()) }
        if let text = fields["text"] {
            guard case .string(let text) = spread(text.value) else { throw text.format("is no text", want: "one") }
            return Data(text.utf8)
        }
        var document = base
        for edit in try item["edits"].array() {
            let path = try edit["path"].array().map { try text(ofStep: $0) }
            let isRemoved = try edit.object()["remove"] != nil
            document = document.replacing(path[...], with: isRemoved ? nil : spread(try edit["value"].value))
        }
        return Data(document.encoded.utf8)
    }

    private static func text(ofStep step: JSONField) throws -> String {
        if case .integer(let index) = step.value { return "\(index)" }
        return try step.string()
    }

    /// Writes out a long text or list.
    private static func spread(_ value: JSON) -> JSON {
        guard case .object(let fields) = value, fields.count == 2, let item = fields["repeat"],
            case .integer(let times) = fields["times"]
        else { return value }
        if case .string(let text) = item { return .string(String(repeating: text, count: times)) }
        return .array(Array(repeating: item, count: times))
    }

    private static func fromHexadecimal(_ text: String) throws -> Data {
        let digits = Array(text)
        let bytes = stride(from: 0, to: digits.count, by: 2).map { UInt8(String(digits[$0...$0 + 1]), radix: 16) }
        return Data(try bytes.map { try #require($0) })
    }
}
