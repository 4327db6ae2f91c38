import Foundation

/// SentencePiece's compiled normalisation: a double-array trie from byte sequences to replacements.
///
/// Port of the crate spm_precompiled and of huggingface/tokenizers, normalizers/precompiled.rs.
struct PrecompiledCharsmap: Sendable {
    private let units: [UInt32]
    private let replacements: [UInt8]  // each ends with a zero
    private let damaged: ModditError  // for a trie that leads outside

    init(_ field: JSONField) throws(ModditError) {
        let text = try field.string()
        guard let data = Data(base64Encoded: text), ExactText(data.base64EncodedString()) == ExactText(text) else {
            throw field.format("is not base64", want: "a compiled map of characters")
        }
        let bytes = [UInt8](data)
        let size = bytes.count >= 4 ? Int(Self.word(bytes, at: 0)) : 0
        guard size >= 4, size % 4 == 0, size <= bytes.count - 4 else {
            throw field.format("has a trie of \(size) bytes in \(bytes.count)", want: "a compiled map of characters")
        }
        units = stride(from: 4, to: 4 + size, by: 4).map { Self.word(bytes, at: $0) }
        replacements = Array(bytes[(4 + size)...])
        guard String(validating: replacements, as: UTF8.self) != nil else {
            throw field.format("has replacements that are not UTF-8", want: "a compiled map of characters")
        }
        let longest = replacements.split(separator: 0).map(\.count).max() ?? 0
        guard longest <= Bounds.replacement else {
            throw .unsupported(
                field.message("has replacements of \(longest) bytes", want: "at most \(Bounds.replacement)"))
        }
        damaged = field.format("leads outside itself", want: "a compiled map of characters")
    }

    /// Normalises a text: what a user sees as one character is replaced whole where it takes less than 6 bytes and the
    /// map has it, otherwise its parts are.
    func normalize(_ text: [Unicode.Scalar]) throws(ModditError) -> [Unicode.Scalar] {
        var result: [Unicode.Scalar] = []
        result.reserveCapacity(text.count)
        for character in String(text) {
            if character.utf8.count < 6, let replacement = try replacement(of: Array(character.utf8)) {
                result += replacement
                continue
            }
            for scalar in character.unicodeScalars {
                result += try replacement(of: Array(UTF8.encode(scalar).map(Array.init) ?? [])) ?? [scalar]
            }
        }
        return result
    }

    /// Finds the replacement of the shortest beginning that the map has.
    private func replacement(of key: [UInt8]) throws(ModditError) -> [Unicode.Scalar]? {
        guard let start = try find(key) else { return nil }
        guard start <= replacements.count else { throw damaged }
        let text = replacements[start...].prefix { $0 != 0 }
        guard let valid = String(validating: text, as: UTF8.self) else { throw damaged }
        return Array(valid.unicodeScalars)
    }

    /// Walks the trie up to the first leaf: a unit holds label, offset and whether a leaf follows, a leaf its value.
    private func find(_ key: [UInt8]) throws(ModditError) -> Int? {
        var position = Self.offset(try unit(0))
        for byte in key where byte != 0 {
            position ^= Int(byte)
            let unit = try unit(position)
            guard unit & 0x8000_00FF == UInt32(byte) else { return nil }
            position ^= Self.offset(unit)
            if unit >> 8 & 1 == 1 { return Int(try self.unit(position) & 0x7FFF_FFFF) }
        }
        return nil
    }

    private func unit(_ position: Int) throws(ModditError) -> UInt32 {
        guard units.indices.contains(position) else { throw damaged }
        return units[position]
    }

    private static func offset(_ unit: UInt32) -> Int {
        Int((unit >> 10) << ((unit & 1 << 9) >> 6))
    }

    private static func word(_ bytes: [UInt8], at index: Int) -> UInt32 {
        (0..<4).reduce(0) { $0 | UInt32(bytes[index + $1]) << (8 * UInt32($1)) }
    }
}

extension String {
    /// Makes a text of characters.
    init(_ scalars: some Sequence<Unicode.Scalar>) {
        var view = String.UnicodeScalarView()
        view.append(contentsOf: scalars)
        self.init(view)
    }
}
