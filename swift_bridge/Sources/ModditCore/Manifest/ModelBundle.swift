import Foundation

/// A bundle's folder and its manifest.
package struct ModelBundle: Sendable {
    /// The folder.
    let folder: URL
    /// What it says of itself.
    package let manifest: Manifest

    /// Opens a bundle, and checks that all its files are there with their sizes.
    ///
    /// - Throws: `ModditError.missing` if the manifest or a file is absent, `ModditError.format` for a damaged one, and
    ///   what `Manifest` throws.
    package init(folder: URL) throws(ModditError) {
        let file = folder.appendingPathComponent(Manifest.fileName)
        let data = try Self.read(file, most: Bounds.jsonBytes)
        self.folder = folder
        manifest = try Manifest(data, place: file.path)
        try verify()
    }

    /// Checks that every file is there with its size, and with its hash if `hashes` (reads everything).
    ///
    /// Files may be links, as downloads from the Hub are, but not their folders, to another place.
    ///
    /// - Throws: `ModditError.missing` if a file is absent, `ModditError.format` if it has another size or hash than
    ///   the manifest says, or is outside the bundle.
    package func verify(hashes: Bool = false) throws(ModditError) {
        for name in manifest.spec.components {
            for info in manifest.components[name]?.files ?? [] { try verify(info, hashes: hashes) }
        }
    }

    /// Checks the hashes of a package's files, which reads all of them.
    ///
    /// - Throws: as `verify(hashes:)`.
    func verify(_ package: Package) throws(ModditError) {
        for info in manifest.files(of: package) { try verify(info, hashes: true) }
    }

    /// Reads the tokenizer.
    ///
    /// - Throws: `ModditError` if it is absent or damaged, its hash is not the manifest's, a token has a number that the
    ///   text encoder does not know, or the model draws no texts.
    package func tokenizer() throws(ModditError) -> UnigramTokenizer {
        guard let text = manifest.spec.conditioning as? TextSpec else {
            throw .unsupported("[tokenizer] \(folder.path): the model draws no texts, so that it has no tokenizer")
        }
        let files = manifest.components["tokenizer"]?.files ?? []
        guard files.count == 1, let info = files.first else {
            throw .format("[manifest] \(folder.path): the tokenizer has \(files.count) files, want one")
        }
        let file = url(info.path)
        let data = try Self.read(file, most: Bounds.tokenizerBytes)
        guard SHA256Hash.hash(data) == info.sha256 else { throw wrongHash(file) }
        return try UnigramTokenizer(data, place: file.path, vocabularySize: text.encoder.vocabularySize)
    }

    /// The packages and their uses.
    ///
    /// - Throws: `ModditError.unsupported` for a bundle of another runtime.
    package func graphs() throws(ModditError) -> Graphs {
        guard manifest.backend == .coreml, let graphs = manifest.graphs else {
            throw .unsupported(
                "[manifest] \(folder.path): a bundle for \(manifest.backend.rawValue), want one for coreml; "
                    + "convert the checkpoint with --to coreml")
        }
        return graphs
    }

    /// Where a file or package lies.
    func url(_ path: String) -> URL {
        folder.appendingPathComponent(path)
    }

    private func verify(_ info: FileInfo, hashes: Bool) throws(ModditError) {
        let file = url(info.path)
        guard let found = RegularFile(file) else {
            throw .missing(
                "[manifest] \(file.path): no such file, though the manifest lists it; convert the checkpoint again")
        }
        guard found.folder.starts(with: RegularFile.components(of: folder)) else {
            throw .format(
                "[manifest] \(file.path): its folder is a link that leaves the bundle; copy the bundle again")
        }
        guard found.bytes == Int64(info.bytes) else {
            throw .format(
                "[manifest] \(file.path): got \(found.bytes) bytes, want \(info.bytes); "
                    + "the file is truncated or changed, convert the checkpoint again")
        }
        if hashes, try SHA256Hash.hash(fileAt: file) != info.sha256 { throw wrongHash(file) }
    }

    private func wrongHash(_ file: URL) -> ModditError {
        .format(
            "[manifest] \(file.path): its sha256 is not the manifest's; the file has changed, "
                + "convert the checkpoint again")
    }

    /// Reads a whole file, after a look at its size; one that is not regular might never end.
    private static func read(_ file: URL, most: Int) throws(ModditError) -> Data {
        guard FileManager.default.fileExists(atPath: file.path) else {
            throw .missing(
                "[manifest] \(file.path): no such file; make a bundle with "
                    + "`python -m convert --from hf-checkpoint --to coreml`")
        }
        guard let bytes = RegularFile(file)?.bytes else {
            throw .format("[manifest] \(file.path): is no regular file, want one; convert the checkpoint again")
        }
        guard bytes <= most else {
            throw .format(
                "[manifest] \(file.path): has \(bytes) bytes, want at most \(most); convert the checkpoint again")
        }
        guard let data = try? Data(contentsOf: file) else {
            throw .format("[manifest] \(file.path): cannot be read; check the disk, or convert again")
        }
        return data
    }
}

/// A file that is there, and is no folder, pipe or device; a link to one counts as it.
private struct RegularFile {
    /// Its size.
    let bytes: Int64
    /// Parts of the path of the folder that it is named in, without links.
    let folder: [String]

    init?(_ file: URL) {
        let target = file.resolvingSymlinksInPath().path
        guard let attributes = try? FileManager.default.attributesOfItem(atPath: target),
            attributes[.type] as? FileAttributeType == .typeRegular, let size = attributes[.size] as? NSNumber
        else { return nil }
        bytes = size.int64Value
        folder = Self.components(of: file.deletingLastPathComponent())
    }

    static func components(of folder: URL) -> [String] {
        folder.resolvingSymlinksInPath().pathComponents
    }
}
