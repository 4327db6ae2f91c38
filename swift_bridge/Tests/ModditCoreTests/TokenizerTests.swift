import Foundation
import Testing

@testable import ModditCore

struct TokenizerTests {
    /// 2,000 captions in many languages, and odd ones, through the character map of T5's tokenizer.
    @Test func captionsEqualHuggingFace() throws {
        let tokenizer = try UnigramTokenizer(Golden.data("tokenizer.json"))
        let length = try Golden.read("captions.json")["max_length"].integer()
        let captions = try Golden.items("captions.json", "captions")
        #expect(captions.count == 2000)
        for caption in captions {
            let parts = try caption.array()
            let text = try parts[0].string()
            let found = try tokenizer.encode(Caption.clean(text), maxLength: length).map { Int($0) }
            #expect(try found == parts[1].integers, "\(text.debugDescription)")
        }
    }

    /// Every normaliser and cut, on its own.
    @Test func variantsEqualHuggingFace() throws {
        let texts = try Golden.items("tokenizers.json", "texts").map { try $0.string() }
        for variant in try Golden.items("tokenizers.json", "tokenizers") {
            let name = try variant["name"].string()
            let tokenizer = try UnigramTokenizer(Data(variant["tokenizer"].value.encoded.utf8), place: name)
            for (text, ids) in zip(texts, try variant["ids"].array()) {
                let found = try tokenizer.encode(text).map { Int($0) }
                #expect(try found == ids.integers, "\(name): \(text.debugDescription)")
            }
        }
    }

    @Test func embeddedTokenizer() throws {
        let tokenizer = try UnigramTokenizer(Golden.data("embedded-tokenizer.json"))
        #expect(tokenizer.padID == 0)
        let caption = try tokenizer.encodeCaption("  A large RED circle  ", length: 24)
        #expect(caption.ids.count == 24)
        #expect(caption.mask.reduce(0, +) == Int32(caption.ids.filter { $0 != 0 }.count))
        #expect(caption.ids[Int(caption.mask.reduce(0, +)) - 1] == 1)
        let cut = try tokenizer.encodeCaption(String(repeating: "red ", count: 100), length: 6)
        #expect(cut.mask == [1, 1, 1, 1, 1, 1])
        #expect(cut.ids.last == 1)
    }

    @Test(arguments: [0, -1, .min, .max])
    func lengthsWithoutRoom(length: Int) throws {
        let tokenizer = try UnigramTokenizer(Golden.data("embedded-tokenizer.json"))
        #expect(throws: ModditError.self) { try tokenizer.encodeCaption("red", length: length) }
    }

    @Test func captionsAreCleanedAsByPython() {
        #expect(Caption.clean(" \u{1c}\u{3000}A B\u{85}\n") == "a b")
        #expect(Caption.clean("ΟΔΥΣΣΕΥΣ Σ Α.Σ ΑΣΑ").unicodeScalars.elementsEqual("οδυσσευς σ α.ς ασα".unicodeScalars))
        #expect(Caption.clean("İ").unicodeScalars.elementsEqual("i\u{307}".unicodeScalars))
        #expect(Caption.clean("   ") == "")
    }

    @Test func promptsHaveABound() throws {
        let tokenizer = try UnigramTokenizer(Golden.data("embedded-tokenizer.json"))
        let longest = String(repeating: "a ", count: Bounds.prompt / 2)
        #expect(try tokenizer.encodeCaption(longest, length: 9).ids.count == 9)
        let wanted = "[tokenizer] the prompt has 20001 characters, want at most 20000; shorten it"
        #expect(throws: ModditError.valueRange(wanted)) {
            try tokenizer.encodeCaption(String(repeating: "a", count: Bounds.prompt + 1), length: 9)
        }
    }

    @Test func unknownPartsAreTold() throws {
        let text = String(decoding: try Golden.data("embedded-tokenizer.json"), as: UTF8.self)
        let changes = [
            ("\"Unigram\"", "\"BPE\""), ("\"Metaspace\"", "\"ByteLevel\""), ("TemplateProcessing", "BertProcessing"),
            ("\"normalizer\": null", "\"normalizer\": {\"type\": \"BertNormalizer\"}"), ("\"1.0\"", "\"2.0\""),
            ("\"prepend_scheme\": \"always\"", "\"prepend_scheme\": \"sometimes\""),
        ]
        for (old, new) in changes {
            let changed = text.replacingOccurrences(of: old, with: new)
            #expect(changed != text)
            #expect(throws: ModditError.self) { try UnigramTokenizer(Data(changed.utf8)) }
        }
    }
}

/// Damaged files give typed errors, never a crash.
struct TokenizerFuzzTests {
    @Test func mutatedFiles() throws {
        let original = [UInt8](try Golden.data("embedded-tokenizer.json"))
        var random = MersenneTwister(seed: 1)
        for _ in 0..<1500 {
            expectTypedOutcome(Self.mutate(original, &random))
        }
    }

    @Test func truncatedFiles() throws {
        let original = [UInt8](try Golden.data("embedded-tokenizer.json"))
        for count in stride(from: 0, to: original.count - 1, by: 7) {
            #expect(throws: ModditError.self) { try UnigramTokenizer(Data(original[..<count])) }
        }
    }

    /// Every value of the file in turn is replaced by one of another kind, or dropped.
    @Test func replacedValues() throws {
        let original = try JSON.parse(Golden.data("embedded-tokenizer.json"), place: "", component: "")
        let others: [JSON?] = [
            nil, .null, .bool(true), .integer(-1), .integer(.max), .number(1e308), .string(""), .string("x"),
            .array([]), .object([:]),
        ]
        for (index, place) in original.places.enumerated() where place.first != "model" || index % 8 == 0 {
            for other in others {
                expectTypedOutcome(Array(original.replacing(place[...], with: other).encoded.utf8))
            }
        }
    }

    @Test func mutatedCharacterMap() throws {
        let base64 = try Golden.read("tokenizer.json")["normalizer"]["precompiled_charsmap"].string()
        let map = [UInt8](try #require(Data(base64Encoded: base64)))
        var random = MersenneTwister(seed: 2)
        for round in 0..<60 {
            var bytes = map
            if round % 3 == 0 { bytes = Array(bytes[..<(Int(random.next()) % bytes.count)]) }
            for _ in 0..<2000 where !bytes.isEmpty {
                bytes[Int(random.next()) % bytes.count] = UInt8(truncatingIfNeeded: random.next())
            }
            if round % 3 == 1 { bytes[..<4] = map[..<4] }
            let normalizer = JSON.object([
                "type": .string("Precompiled"), "precompiled_charsmap": .string(Data(bytes).base64EncodedString()),
            ])
            do throws(ModditError) {
                let normalizer = try Normalizer(JSONField(normalizer, place: "", component: "tokenizer"))
                for text in ["plain ｶﾞ ﬁ", "é\u{301} 각 \u{ad}", "\u{10fffd}"] {
                    _ = try normalizer.apply(Array(text.unicodeScalars))
                }
            } catch {
                #expect(error.message.hasPrefix("[tokenizer]"))
            }
        }
    }

    /// Typed, because the compiler knows that these functions throw nothing else.
    private func expectTypedOutcome(_ bytes: [UInt8]) {
        do throws(ModditError) {
            let tokenizer = try UnigramTokenizer(Data(bytes))
            for text in ["a large red circle", "</s>x ▁ é", ""] { _ = try tokenizer.encode(text, maxLength: 9) }
        } catch {
            #expect(error.message.hasPrefix("[tokenizer]"))
        }
    }

    private static func mutate(_ original: [UInt8], _ random: inout MersenneTwister) -> [UInt8] {
        var bytes = original
        let alphabet = Array("{}[]\",:0123456789-.eE\\u\u{7f}ntrabf ".utf8) + [0, 0x80, 0xC3, 0xFF]
        for _ in 0...random.next() % 3 {
            let position = Int(random.next()) % bytes.count
            switch random.next() % 4 {
            case 0: bytes[position] = alphabet[Int(random.next()) % alphabet.count]
            case 1: bytes.insert(alphabet[Int(random.next()) % alphabet.count], at: position)
            case 2: bytes.removeSubrange(position..<min(bytes.count, position + Int(random.next() % 40) + 1))
            default:
                let end = min(bytes.count, position + Int(random.next() % 60))
                bytes.insert(contentsOf: bytes[position..<end], at: Int(random.next()) % bytes.count)
            }
            if bytes.isEmpty { return original }
        }
        return bytes
    }
}
