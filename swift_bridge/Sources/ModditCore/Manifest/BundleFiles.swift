import Foundation

/// One file of a component.
public struct FileInfo: Sendable, Hashable {
    /// Relative to the bundle, with forward slashes.
    public let path: String
    /// Its size.
    public let bytes: Int
    /// Its SHA-256, hexadecimal.
    public let sha256: String

    /// Reads a file's entry strictly.
    init(_ field: JSONField) throws(ModditError) {
        let object = try JSONObject(field, ["path", "bytes", "sha256"])
        path = try BundlePath.read(object["path"])
        bytes = try object["bytes"].integer(in: 0...Int.max)
        sha256 = try object["sha256"].string()
        let isHash = sha256.utf8.count == 64 && sha256.allSatisfy { $0.isHexDigit && !$0.isUppercase }
        guard isHash else { throw field.format("sha256 '\(sha256.prefix(80))'", want: "64 hexadecimal digits") }
    }
}

/// Fewer bits for the tensors listed by name; the others stay as they are.
public struct Quantization: Sendable, Hashable {
    /// Bits of a number.
    public let bits: Int
    /// Numbers that share a scale (0: a whole row), or rows that share a palette.
    public let groupSize: Int
    /// "affine", "symmetric" or "palette".
    public let mode: String
    /// Names.
    public let tensors: [String]

    /// Reads a quantization strictly.
    init(_ field: JSONField) throws(ModditError) {
        let object = try JSONObject(field, ["bits", "group_size", "mode", "tensors"])
        bits = try object["bits"].integer(in: 1...16)
        groupSize = try object["group_size"].integer(in: 0...Int(Int32.max))
        mode = try object["mode"].string()
        tensors = try object["tensors"].list { item throws(ModditError) in try item.string() }
    }
}

/// One component of a bundle.
public struct Component: Sendable, Hashable {
    /// Its files.
    public let files: [FileInfo]
    /// Of its large tensors; nil for files that are not tensors.
    public let dtype: String?
    /// Number of parameters.
    public let parameters: Int
    /// How tensors are stored in fewer bits.
    public let quantization: Quantization?

    /// Bytes of all its files.
    public var bytes: Int {
        files.reduce(0) { sum, file in
            let (total, isTooLarge) = sum.addingReportingOverflow(file.bytes)
            return isTooLarge ? Int.max : total
        }
    }

    /// Reads a component strictly.
    init(_ field: JSONField) throws(ModditError) {
        let object = try JSONObject(field, ["files", "dtype", "parameters", "quantization"])
        files = try object["files"].list(FileInfo.init)
        dtype = try object.optional("dtype") { item throws(ModditError) in try item.string() }
        parameters = try object["parameters"].integer(in: 0...Int.max)
        quantization = try object.optional("quantization") { item throws(ModditError) in try Quantization(item) }
    }
}

/// Where a bundle came from.
public struct Provenance: Sendable, Hashable {
    /// The checkpoint.
    public let source: String
    /// Its SHA-256.
    public let sourceSHA256: String
    /// Versions of the programs that wrote the bundle.
    public let toolVersions: [String: String]
    /// ISO 8601, UTC.
    public let created: String

    /// Reads a provenance strictly.
    init(_ field: JSONField) throws(ModditError) {
        let object = try JSONObject(field, ["source", "source_sha256", "tool_versions", "created"])
        source = try object["source"].string()
        sourceSHA256 = try object["source_sha256"].string()
        created = try object["created"].string()
        var versions: [String: String] = [:]
        for (name, item) in try object["tool_versions"].object() { versions[name] = try item.string() }
        toolVersions = versions
    }
}

/// Paths of a manifest, which must stay inside the bundle.
enum BundlePath {
    /// Reads a path.
    ///
    /// - Throws: `ModditError.format` for one that leaves the bundle, or names the bundle itself.
    static func read(_ field: JSONField) throws(ModditError) -> String {
        let path = try field.string()
        let parts = path.split(separator: "/", omittingEmptySubsequences: false)
        let isInside = parts.allSatisfy { !["", ".", ".."].contains($0) }
        guard isInside, !path.unicodeScalars.contains(where: { $0 == "\\" || $0.value < 0x20 }) else {
            throw .format(
                "[manifest] \(field.place): path '\(path)' leaves the bundle, want a relative path inside it")
        }
        return path
    }

    /// Whether a path is one of a folder's.
    static func isInside(_ path: String, _ folder: String) -> Bool {
        path.hasPrefix(folder + "/")
    }
}
