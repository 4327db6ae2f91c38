/// A vocabulary with a log probability for each piece, and the most probable way to cut a word into pieces.
///
/// Port of huggingface/tokenizers, models/unigram/model.rs, `encode_optimized`: same order of candidates, same ties.
struct UnigramModel: Sendable {
    /// How much less probable than the rarest piece an unknown character is.
    private static let unknownPenalty = 10.0

    private let scores: [Double]
    private let unknownID: Int
    private let unknownScore: Double
    private let pieces: PieceTrie
    private let byteIDs: [Int]?  // of the 256 bytes, if unknown characters become bytes

    /// Number of pieces.
    var count: Int { scores.count }

    init(_ field: JSONField, vocabularySize: Int) throws(ModditError) {
        let type = try typeName(of: field)
        guard type == "Unigram" else { throw unsupported(field, type) }
        let fields = try field.object(["type", "unk_id", "vocab"], optional: ["byte_fallback"])
        guard let unknown = fields["unk_id"], let vocabulary = fields["vocab"] else {
            throw field.format("has no vocabulary", want: "one")
        }
        guard case .array(let items) = vocabulary.value, !items.isEmpty else {
            throw vocabulary.format("has no pieces", want: "a list of [piece, score]")
        }
        guard items.count <= vocabularySize else {
            throw .shape(
                vocabulary.message(
                    "has \(items.count) pieces", want: "at most the text encoder's vocab_size, \(vocabularySize)"))
        }
        var (pieces, scores) = (PieceTrie(), [Double]())
        scores.reserveCapacity(items.count)
        for (id, item) in items.enumerated() {
            guard case .array(let pair) = item, pair.count == 2, case .string(let piece) = pair[0] else {
                throw vocabulary.format("has the item \(id), which is no piece", want: "[piece, score]")
            }
            scores.append(try vocabulary.inner(pair[1], "[\(id)][1]").number())
            pieces.insert(piece.utf8, id: id)
        }
        self.scores = scores
        self.pieces = pieces
        unknownID = try unknown.integer(in: 0...scores.count - 1)
        unknownScore = scores.reduce(.infinity, min) - Self.unknownPenalty
        let fallsBack = try fields["byte_fallback"]?.bool() ?? false
        byteIDs = fallsBack ? Self.findBytes(pieces) : nil
    }

    /// Finds the number of a piece.
    func id(of piece: String) -> Int? {
        pieces.id(of: piece.utf8)
    }

    /// Cuts a word into pieces.
    func encode(_ word: String) -> [Int] {
        let bytes = Array(word.utf8)
        var ids: [Int] = []
        for range in bestPath(bytes) {
            if let id = pieces.id(of: bytes[range]) {
                ids.append(id)
            } else if let byteIDs {
                ids += bytes[range].map { byteIDs[Int($0)] }
            } else {
                ids.append(unknownID)
            }
        }
        return ids
    }

    private struct Node {
        var id = -1
        var score = 0.0
        var start = -1  // not reached

        mutating func offer(id: Int, score: Double, start: Int) {
            if self.start < 0 || score > self.score { self = Node(id: id, score: score, start: start) }
        }
    }

    /// Finds the ranges of the most probable pieces; neighbouring unknown characters are one.
    private func bestPath(_ bytes: [UInt8]) -> [Range<Int>] {
        var nodes = [Node](repeating: Node(), count: bytes.count + 1)
        var start = 0
        while start < bytes.count {
            let here = nodes[start].score
            let width = Self.width(of: bytes[start])
            var hasCharacter = false
            pieces.forEachPrefix(of: bytes, from: start) { end, id in
                nodes[end].offer(id: id, score: scores[id] + here, start: start)
                hasCharacter = hasCharacter || end - start == width
            }
            if !hasCharacter {
                nodes[start + width].offer(id: unknownID, score: unknownScore + here, start: start)
            }
            start += width
        }
        var ranges: [Range<Int>] = []
        var isUnknown = false
        var end = bytes.count
        while end > 0 {
            let node = nodes[end]
            if node.id == unknownID, isUnknown, let last = ranges.popLast() {
                ranges.append(node.start..<last.upperBound)
            } else {
                ranges.append(node.start..<end)
            }
            isUnknown = node.id == unknownID
            end = node.start
        }
        return ranges.reversed()
    }

    /// Bytes of the character that begins with a byte, in valid UTF-8.
    private static func width(of byte: UInt8) -> Int {
        byte < 0x80 ? 1 : byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4
    }

    /// Finds the pieces <0x00> to <0xFF>; nil if one is missing.
    private static func findBytes(_ pieces: PieceTrie) -> [Int]? {
        let ids = (0..<256).compactMap { byte in
            let digits = String(byte, radix: 16, uppercase: true)
            return pieces.id(of: "<0x\(byte < 16 ? "0" : "")\(digits)>".utf8)
        }
        return ids.count == 256 ? ids : nil
    }
}

/// Pieces by their bytes.
///
/// Bytes, because Swift's texts are equal where Unicode's canonical forms are.
struct PieceTrie: Sendable {
    private var children: [UInt64: Int32] = [:]  // node * 256 + byte -> node
    private var ids: [Int32] = [-1]  // of the piece that ends at a node

    /// Adds a piece; a repeated one takes the new number.
    mutating func insert(_ piece: some Sequence<UInt8>, id: Int) {
        var node: Int32 = 0
        for byte in piece {
            let key = Self.key(node, byte)
            if let next = children[key] {
                node = next
            } else {
                node = Int32(ids.count)
                children[key] = node
                ids.append(-1)
            }
        }
        ids[Int(node)] = Int32(id)
    }

    /// Finds the number of a piece.
    func id(of piece: some Sequence<UInt8>) -> Int? {
        var node: Int32 = 0
        for byte in piece {
            guard let next = children[Self.key(node, byte)] else { return nil }
            node = next
        }
        return ids[Int(node)] < 0 ? nil : Int(ids[Int(node)])
    }

    /// Visits the pieces that begin at a position, shortest first: where each ends, and its number.
    func forEachPrefix(of bytes: [UInt8], from start: Int, _ visit: (_ end: Int, _ id: Int) -> Void) {
        var node: Int32 = 0
        for position in start..<bytes.count {
            guard let next = children[Self.key(node, bytes[position])] else { return }
            node = next
            if ids[Int(node)] >= 0 { visit(position + 1, Int(ids[Int(node)])) }
        }
    }

    private static func key(_ node: Int32, _ byte: UInt8) -> UInt64 {
        UInt64(node) << 8 | UInt64(byte)
    }
}
