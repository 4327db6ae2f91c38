import Foundation
import Testing

@testable import ModditCore

struct CompiledModelCacheTests {
    @Test func storesFindsAndRemoves() throws {
        let folder = FileManager.default.temporaryDirectory.appendingPathComponent("moddit-\(UUID().uuidString)")
        defer { try? FileManager.default.removeItem(at: folder) }
        let cache = try CompiledModelCache(folder: folder.appendingPathComponent("cache"))
        let hash = SHA256Hash.hash("package".utf8)
        #expect(cache.find(hash) == nil)
        let stored = try cache.store(compiled("first", in: folder), hash: hash)
        #expect(cache.find(hash) == stored)
        #expect(stored.lastPathComponent == "\(hash).mlmodelc")
        // another process was faster: its model stays
        #expect(try cache.store(compiled("second", in: folder), hash: hash) == stored)
        #expect(try String(contentsOf: stored.appendingPathComponent("model"), encoding: .utf8) == "first")
        #expect(FileManager.default.fileExists(atPath: folder.appendingPathComponent("second").path) == false)
        try cache.remove(hash)
        try cache.remove(hash)
        #expect(cache.find(hash) == nil)
    }

    @Test func folderThatCannotBeMade() throws {
        let cache = try CompiledModelCache(folder: URL(fileURLWithPath: "/dev/null/cache"))
        let source = URL(fileURLWithPath: "/absent")
        #expect(throws: ModditError.self) { try cache.store(source, hash: "00") }
    }

    @Test func defaultFolderIsTheUsers() throws {
        #expect(try CompiledModelCache().folder.path.hasSuffix("moddit/compiled"))
    }

    /// A bundle whose weights have changed, under the manifest of an intact one: it must not fill the intact one's place.
    @Test func changedPackageDoesNotEnter() async throws {
        let (changed, intact) = (try TestBundle("routed"), try TestBundle("routed"))
        defer { [changed, intact].forEach { $0.remove() } }
        let cache = try CompiledModelCache(folder: intact.folder.appendingPathComponent("cache"))
        let package = try #require(try ModelBundle(folder: intact.folder).graphs().packages(for: .transformer).first)
        let weights = "\(package.path)/Data/com.apple.CoreML/weights/weight.bin"
        let file = changed.folder.appendingPathComponent(weights)
        var bytes = try Data(contentsOf: file)
        bytes[0] ^= 1  // of the same size, so that opening the bundle cannot tell
        try bytes.write(to: file)

        let compiler = FakeCompiler(folder: intact.folder)
        let poisoned = try ModelBundle(folder: changed.folder)
        do {
            _ = try await cache.model(of: package, in: poisoned) { try await compiler.compile($0) }
            Issue.record("no error, want one of the weights")
        } catch let error as ModditError {
            #expect(error.message.contains("weight.bin: its sha256 is not the manifest's"))
        }
        #expect(await compiler.compiled == [])
        #expect(cache.find(poisoned.manifest.hash(of: package)) == nil)

        let bundle = try ModelBundle(folder: intact.folder)
        let first = try await cache.model(of: package, in: bundle) { try await compiler.compile($0) }
        #expect(first.origin == .compiled)
        let model = try String(contentsOf: first.url.appendingPathComponent("weight.bin"), encoding: .utf8)
        #expect(model == weights)
        // the changed bundle gets what the manifest promises
        let second = try await cache.model(of: package, in: poisoned) { try await compiler.compile($0) }
        #expect(second == CompiledModelCache.Model(url: first.url, origin: .cache, seconds: 0))
        #expect(await compiler.compiled == [bundle.url(package.path)])
    }

    private func compiled(_ name: String, in folder: URL) throws -> URL {
        let url = folder.appendingPathComponent(name)
        try FileManager.default.createDirectory(at: url, withIntermediateDirectories: true)
        try Data(name.utf8).write(to: url.appendingPathComponent("model"))
        return url
    }
}

/// Stands in for Core ML's compiler: the model is the package's weights.
private actor FakeCompiler {
    let folder: URL
    private(set) var compiled: [URL] = []

    init(folder: URL) { self.folder = folder }

    func compile(_ package: URL) throws -> URL {
        compiled.append(package)
        let model = folder.appendingPathComponent("\(UUID().uuidString).mlmodelc")
        try FileManager.default.createDirectory(at: model, withIntermediateDirectories: true)
        try FileManager.default.copyItem(
            at: package.appendingPathComponent("Data/com.apple.CoreML/weights/weight.bin"),
            to: model.appendingPathComponent("weight.bin"))
        return model
    }
}
