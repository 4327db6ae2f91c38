import Foundation
import ModditCore

/// A file that a command writes when all else is done.
struct OutputFile {
    /// As the user gave it.
    let path: String
    /// Whether one that exists may be replaced.
    let overwrites: Bool

    /// Checks that it may be written.
    ///
    /// - Throws: `ModditError.outputExists` if it is there and may not be replaced; a folder never is.
    func check() throws(ModditError) {
        var isFolder: ObjCBool = false
        guard FileManager.default.fileExists(atPath: path, isDirectory: &isFolder) else { return }
        guard !isFolder.boolValue else {
            throw .outputExists("[output] \(path) is a folder; choose another name")
        }
        guard overwrites else {
            throw .outputExists("[output] \(path) exists; choose another name or allow it with --overwrite")
        }
    }

    /// Makes the folder that it will be in, before work that would be lost without it.
    ///
    /// - Throws: `ModditError.storage` if that cannot be made, or nothing be written there.
    func makeFolder() throws(ModditError) {
        let folder = URL(fileURLWithPath: path).deletingLastPathComponent()
        do {
            try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        } catch {
            throw cannotWrite(error.localizedDescription)
        }
        guard FileManager.default.isWritableFile(atPath: folder.path) else {
            throw cannotWrite("its folder may not be written")
        }
    }

    /// Writes it, all or nothing.
    ///
    /// - Throws: `ModditError.outputExists` as `check`, `ModditError.storage` if it cannot be written.
    func save(_ data: Data) throws(ModditError) {
        try check()
        try makeFolder()
        do {
            try data.write(to: URL(fileURLWithPath: path), options: .atomic)
        } catch {
            throw cannotWrite(error.localizedDescription)
        }
    }

    private func cannotWrite(_ why: String) -> ModditError {
        .storage("[output] cannot write \(path): \(why)")
    }
}
