import Foundation
import Testing

@testable import ModditCore

struct SHA256Tests {
    /// Vectors of NIST: FIPS 180-4 examples, and messages of the Secure Hash Algorithm Validation System.
    @Test(arguments: [
        ("", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
        ("abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
        (
            "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"
        ),
        (
            "abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmnhijklmnoijklmnopjklmnopqklmnopqrlmnopqrsmnopqrstnopqrstu",
            "cf5b16a778af8380036ce59e7b0492370b249b11e8f07a51afac45037afee9d1"
        ),
    ])
    func vectors(text: String, wanted: String) {
        #expect(SHA256Hash.hash(text.utf8) == wanted)
        var hash = PortableSHA256()  // tested on Apple's systems too, where CryptoKit does the other
        hash.update(Array(text.utf8))
        #expect(hash.finish() == Self.bytes(wanted))
    }

    @Test func millionLetters() {
        var hash = SHA256Hash()
        let part = [UInt8](repeating: UInt8(ascii: "a"), count: 1000)
        var portable = PortableSHA256()
        for _ in 0..<1000 {
            hash.update(part)
            portable.update(part)
        }
        let wanted = "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"
        #expect(hash.finish() == wanted)
        #expect(portable.finish() == Self.bytes(wanted))
    }

    @Test func partsMakeNoDifference() {
        let bytes = (0..<300).map { UInt8(truncatingIfNeeded: $0 &* 7) }
        for length in 0..<200 {
            let whole = SHA256Hash.hash(bytes[..<length])
            for cut in [0, 1, 55, 63, 64, 65, 130] where cut <= length {
                var hash = SHA256Hash()
                hash.update(Array(bytes[..<cut]))
                hash.update(Array(bytes[cut..<length]))
                #expect(hash.finish() == whole)
                var portable = PortableSHA256()
                portable.update(Array(bytes[..<cut]))
                portable.update(Array(bytes[cut..<length]))
                #expect(portable.finish() == Self.bytes(whole))
            }
        }
    }

    /// Reads hexadecimal digits.
    private static func bytes(_ digits: String) -> [UInt8] {
        let digits = Array(digits)
        return stride(from: 0, to: digits.count, by: 2).compactMap { UInt8(String(digits[$0...$0 + 1]), radix: 16) }
    }
}
