import Foundation

/// One file of a component.
struct FileInfo: Sendable, Hashable {
    /// Relative to the bundle, with forward slashes.
    let path: String
    /// Its size.
    let bytes: Int
    /// Its SHA-256, hexadecimal.
    let sha256: String

    /// Reads a file's entry strictly.
    init(_ field: JSONField) throws(ModditError) {
        let object = try JSONObject(field, ["path", "bytes", "sha256"])
        path = try object["path"].relativePath()
        bytes = try object["bytes"].integer(in: 0...Bounds.fileBytes)
        sha256 = try object["sha256"].sha256()
    }
}

/// Fewer bits for the tensors listed by name; those that none of a component lists stay as they are.
package struct Quantization: Sendable, Hashable {
    /// How the numbers of tensors are made smaller.
    enum Mode: String, Sendable, CaseIterable {
        /// A scale and a bias for each group.
        case affine
        /// Floats of 4 bits, and a power of two for each group.
        case mxfp4
        /// A scale for each group.
        case symmetric
        /// A table of values for each group of rows.
        case palette

        /// Bits that a number may have.
        var bits: [Int] {
            switch self {
            case .affine: [3, 4, 5, 6, 8]
            case .mxfp4: [4]
            case .symmetric: [4, 8]
            case .palette: [4, 6]
            }
        }

        /// Sizes that a group may have; nil for any.
        var groupSizes: [Int]? {
            switch self {
            case .affine: [32, 64, 128]
            case .mxfp4: [32]
            case .symmetric, .palette: nil
            }
        }

        /// The runtime whose bundles may have it.
        var backend: Backend { groupSizes == nil ? .coreml : .mlx }
    }

    /// Bits of a number.
    package let bits: Int
    /// Numbers that share a scale (0: a whole row), or rows that share a palette.
    let groupSize: Int
    /// How they are made smaller.
    let mode: Mode
    /// Names.
    let tensors: [String]

    /// Reads a quantization strictly.
    init(_ field: JSONField) throws(ModditError) {
        let object = try JSONObject(field, ["bits", "group_size", "mode", "tensors"])
        bits = try object["bits"].integer(in: 1...16)
        groupSize = try object["group_size"].integer(in: 0...Bounds.width)
        mode = try choice(object["mode"])
        tensors = try object["tensors"].list(1...Bounds.tensors) { item throws(ModditError) in try item.name() }
        guard mode.bits.contains(bits) else {
            throw .unsupported(try object["bits"].message("of mode \(mode.rawValue) is \(bits)", want: "\(mode.bits)"))
        }
        if let sizes = mode.groupSizes, !sizes.contains(groupSize) {
            let found = "of mode \(mode.rawValue) is \(groupSize)"
            throw .unsupported(try object["group_size"].message(found, want: "\(sizes)"))
        }
    }
}

/// One component of a bundle.
package struct Component: Sendable, Hashable {
    /// Kinds of numbers.
    package enum DType: String, Sendable, CaseIterable {
        /// 2 bytes, with 11 bits of precision.
        case float16
        /// 2 bytes, with 8 bits of precision.
        case bfloat16
        /// 4 bytes.
        case float32
    }

    /// Its files.
    let files: [FileInfo]
    /// Of its large tensors; nil for files that are not tensors.
    package let dtype: DType?
    /// Number of parameters.
    package let parameters: Int
    /// How tensors are stored in fewer bits.
    package let quantization: [Quantization]

    /// Bits of its quantised tensors, which are the same for all in a bundle for Core ML; nil where none are.
    package var bits: Int? { quantization.first?.bits }

    /// Bytes of all its files.
    package var bytes: Int {
        files.reduce(0) { sum, file in
            let (total, isTooLarge) = sum.addingReportingOverflow(file.bytes)
            return isTooLarge ? Int.max : total
        }
    }

    /// Reads a component strictly.
    init(_ field: JSONField) throws(ModditError) {
        let object = try JSONObject(field, ["files", "dtype", "parameters", "quantization"])
        files = try object["files"].list(1...Bounds.files, FileInfo.init)
        dtype = try object.optional("dtype", choice)
        parameters = try object["parameters"].integer(in: 0...Bounds.parameters)
        let quantized = try object["quantization"]
        quantization = try quantized.list(0...Bounds.quantizations, Quantization.init)
        let names = quantization.flatMap(\.tensors)
        guard Set(names.map { ExactText($0) }).count == names.count else {
            throw quantized.format("lists tensors twice", want: "each once")
        }
    }
}

/// Where a bundle came from.
package struct Provenance: Sendable, Hashable {
    /// The checkpoint.
    package let source: String

    /// Reads a provenance strictly.
    init(_ field: JSONField) throws(ModditError) {
        let object = try JSONObject(field, ["source", "source_sha256", "tool_versions", "created"])
        source = try object["source"].text(0...Bounds.text)
        _ = try object["source_sha256"].sha256()
        _ = try object["created"].time()
        _ = try object["tool_versions"].dictionary(0...Bounds.files) { item throws(ModditError) in
            try item.name()
        }
    }
}
