import Foundation

/// A folder of compiled models, so that a package is compiled once on a machine.
///
/// A model lies under the hash of its package: another bundle with the same package finds it, and a changed package does
/// not. A package's files are hashed before it is compiled, since a manifest may say what is no longer so.
public struct CompiledModelCache: Sendable, Hashable {
    private static let ending = "mlmodelc"

    /// The folder.
    public let folder: URL

    /// Chooses a folder.
    ///
    /// - Parameter folder: by default one in Application Support; a system may empty a folder of caches while it is used.
    /// - Throws: `ModditError.storage` if the system names no folder.
    public init(folder: URL? = nil) throws(ModditError) {
        let support = FileManager.default.urls(for: .applicationSupportDirectory, in: .userDomainMask).first
        guard let folder = folder ?? support?.appendingPathComponent("moddit/compiled") else {
            throw .storage("[cache] the system has no folder for Application Support; name one")
        }
        self.folder = folder
    }

    /// Finds a compiled model.
    func find(_ hash: String) -> URL? {
        let url = place(hash)
        return FileManager.default.fileExists(atPath: url.path) ? url : nil
    }

    /// A compiled model, and where it came from.
    package struct Model: Sendable, Hashable {
        /// Where it is.
        package let url: URL
        /// Whether it was compiled now.
        package let origin: LoadReport.Origin
        /// Time to hash and compile the package; 0 if the model was in the cache.
        package let seconds: Double
    }

    /// Finds a package's compiled model, or compiles the package and keeps the model.
    ///
    /// - Parameters:
    ///   - package: one of the bundle's.
    ///   - bundle: where it lies.
    ///   - compile: makes a compiled model of a package, in a temporary folder.
    /// - Throws: `ModditError.missing` and `.format` if the package's files are not those of the manifest,
    ///   `ModditError.storage` if the folder cannot be written, and what `compile` throws.
    package func model(
        of package: Package, in bundle: ModelBundle, compile: @Sendable (URL) async throws -> URL
    ) async throws -> Model {
        let hash = bundle.manifest.hash(of: package)
        if let url = find(hash) { return Model(url: url, origin: .cache, seconds: 0) }
        let start = ContinuousClock.now
        try bundle.verify(package)
        let url = try store(await compile(bundle.url(package.path)), hash: hash)
        return Model(url: url, origin: .compiled, seconds: (ContinuousClock.now - start) / .seconds(1))
    }

    /// Moves a compiled model here, unless another process has done so meanwhile.
    ///
    /// - Returns: where it is now.
    /// - Throws: `ModditError.storage` if the folder cannot be made or written.
    func store(_ compiled: URL, hash: String) throws(ModditError) -> URL {
        let target = place(hash)
        // beside the target first: from another volume a move copies, and may stop in the middle
        let staged = folder.appendingPathComponent(".\(UUID().uuidString).part")
        defer {
            try? FileManager.default.removeItem(at: compiled)
            try? FileManager.default.removeItem(at: staged)
        }
        do {
            try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
            try FileManager.default.moveItem(at: compiled, to: staged)
            try FileManager.default.moveItem(at: staged, to: target)
        } catch {
            guard find(hash) != nil else {
                throw .storage("[cache] cannot write \(target.path): \(error.localizedDescription)")
            }
        }
        excludeFromBackup(target)
        return target
    }

    /// Removes a compiled model, if it is there.
    ///
    /// - Throws: `ModditError.storage` if it cannot be removed.
    package func remove(_ hash: String) throws(ModditError) {
        guard let url = find(hash) else { return }
        do {
            try FileManager.default.removeItem(at: url)
        } catch {
            throw .storage("[cache] cannot remove \(url.path): \(error.localizedDescription)")
        }
    }

    /// Hashes are hexadecimal, but a name must be safe whatever it is.
    private func place(_ hash: String) -> URL {
        folder.appendingPathComponent(String(hash.filter { $0.isHexDigit }.prefix(64)))
            .appendingPathExtension(Self.ending)
    }

    /// It can be made again.
    private func excludeFromBackup(_ url: URL) {
        #if canImport(Darwin)
        var (url, values) = (url, URLResourceValues())
        values.isExcludedFromBackup = true
        try? url.setResourceValues(values)
        #endif
    }
}

/// How a function of a package came into memory.
public struct LoadReport: Sendable, Hashable {
    /// Where the compiled model came from.
    public enum Origin: String, Sendable {
        /// Compiled now, which happens once on a machine.
        case compiled
        /// Found in the cache.
        case cache
    }

    /// Path of the package in its bundle.
    public let package: String
    /// The function.
    public let function: String
    /// Where the compiled model came from.
    public let origin: Origin
    /// Time to hash the package's files and compile it; 0 if it was in the cache.
    public let compileSeconds: Double
    /// Time to load; the first time for a function the system also prepares it for the device.
    public let loadSeconds: Double

    /// Makes a report.
    package init(package: String, function: String, origin: Origin, compileSeconds: Double, loadSeconds: Double) {
        self.package = package
        self.function = function
        self.origin = origin
        self.compileSeconds = compileSeconds
        self.loadSeconds = loadSeconds
    }
}
